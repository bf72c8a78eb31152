use proptest::prelude::*;

use super::*;

const FUEL: u32 = 50_000;

/// What comes of a rule with that data, as JSON reads it.
fn run(rule: &str, data: &str) -> Result<String, Exhausted> {
    let rule = Rule::parse(rule).unwrap_or_else(|e| panic!("{rule}: {e}"));
    let data = Value::parse(data, 64).unwrap_or_else(|| panic!("{data}"));
    let mut fuel = Fuel(FUEL);
    rule.evaluate(&data, &mut fuel).map(|v| shown(&v))
}

fn shown(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(Number::Whole(n)) => n.to_string(),
        Value::Number(Number::Double(n)) => n.to_string(),
        Value::Text(text) => format!("{:?}", text.as_str()),
        Value::List(list) => {
            let items: Vec<String> = list.items().iter().map(shown).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(object) => {
            let members = object.members().iter();
            let members: Vec<String> = members
                .map(|(n, v)| format!("{n:?}:{}", shown(v)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
    }
}

fn check(vectors: &[(&str, &str, &str)]) {
    for (rule, data, expected) in vectors {
        assert_eq!(
            run(rule, data).as_deref(),
            Ok(*expected),
            "{rule} of {data}"
        );
    }
}

// D3
#[test]
fn paths() {
    let data = r#"{"a":{"b":[10,{"c":"x"}],"n":null},"":1,"e.f":2,"":3}"#;
    check(&[
        (r#"{"var":"a.b.0"}"#, data, "10"),
        (r#"{"var":"a.b.1.c"}"#, data, r#""x""#),
        (r#"{"var":["a.b.1.c"]}"#, data, r#""x""#),
        (r#"{"var":"a.b.2"}"#, data, "null"),
        (r#"{"var":"a.b.-1"}"#, data, "null"),
        (r#"{"var":["a.x",7]}"#, data, "7"),
        (r#"{"var":["a.n",7]}"#, data, "7"),
        (r#"{"var":["a.x",{"var":"a.b.0"}]}"#, data, "10"),
        (r#"{"var":{"cat":["a",".b",".0"]}}"#, data, "10"),
        (r#"{"var":"e.f"}"#, data, "null"),
        (r#"{"var":1}"#, r#"["x","y"]"#, r#""y""#),
        (r#"{"var":"x"}"#, r#"{"x":1,"x":2}"#, "2"),
        (r#"{"var":""}"#, "5", "5"),
        (r#"{"var":[]}"#, "5", "5"),
        (r#"{"var":null}"#, "5", "5"),
        (r#"{"var":["",9]}"#, "null", "9"),
        (r#"{"var":"a"}"#, r#""text""#, "null"),
        (r#"{"var":"a\u00fc\ud83d\ude00"}"#, "{\"aü😀\":1}", "1"),
        (
            r#"{"missing":["a","q",""]}"#,
            r#"{"a":1,"q":""}"#,
            r#"["q"]"#,
        ),
        (
            r#"{"missing":{"merge":["a",["b"]]}}"#,
            r#"{"a":1}"#,
            r#"["b"]"#,
        ),
        (r#"{"missing":[]}"#, "{}", "[]"),
        (r#"{"missing_some":[1,["a","b"]]}"#, r#"{"a":1}"#, "[]"),
        (
            r#"{"missing_some":[2,["a","b"]]}"#,
            r#"{"a":1}"#,
            r#"["b"]"#,
        ),
    ]);
}

// D3
#[test]
fn choices() {
    check(&[
        (r#"{"if":[true,1,2]}"#, "0", "1"),
        (r#"{"if":[[],1,"0",2,3]}"#, "0", "2"),
        (r#"{"if":[0,1]}"#, "0", "null"),
        (r#"{"if":[7]}"#, "0", "7"),
        (r#"{"?:":["",1,2]}"#, "0", "2"),
        (r#"{"and":[1,"",3]}"#, "0", r#""""#),
        (r#"{"and":[1,2]}"#, "0", "2"),
        (r#"{"or":[0,null,"x",1]}"#, "0", r#""x""#),
        (r#"{"or":[0,false]}"#, "0", "false"),
        (r#"{"!":[0]}"#, "0", "true"),
        (r#"{"!":"0"}"#, "0", "false"),
        (r#"{"!!":[[]]}"#, "0", "false"),
        (r#"{"!!":[[0]]}"#, "0", "true"),
        (r#"{"!!":{"var":""}}"#, "{}", "true"),
        (r#"{"!!":{"-":["x"]}}"#, "0", "false"),
        (r#"{"!!":-0.0}"#, "0", "false"),
    ]);
}

// D3: as JavaScript compares, and whole numbers by all of their digits.
#[test]
fn comparisons() {
    check(&[
        (r#"{"==":[1,"1"]}"#, "0", "true"),
        (r#"{"==":[1,"1.0"]}"#, "0", "true"),
        (r#"{"==":[0,""]}"#, "0", "true"),
        (r#"{"==":[0,false]}"#, "0", "true"),
        (r#"{"==":["1",true]}"#, "0", "true"),
        (r#"{"==":[null,0]}"#, "0", "false"),
        (r#"{"==":[null,{"var":"x"}]}"#, "{}", "true"),
        (r#"{"==":["a","b"]}"#, "0", "false"),
        (r#"{"==":["x",0]}"#, "0", "false"),
        (r#"{"==":[[1,2],"1,2"]}"#, "0", "true"),
        (r#"{"==":[[1],1]}"#, "0", "true"),
        (
            r#"{"==":[{"var":""},["a",{"var":"1"}]]}"#,
            r#"["a","b"]"#,
            "true",
        ),
        (
            r#"{"==":[{"var":"a"},{"var":"b"}]}"#,
            r#"{"a":{"x":1,"y":[2]},"b":{"y":[2.0],"x":1}}"#,
            "true",
        ),
        (
            r#"{"==":[{"var":"a"},{"var":"b"}]}"#,
            r#"{"a":{"x":1},"b":{"x":2}}"#,
            "false",
        ),
        (
            r#"{"==":[{"var":"a"},"[object Object]"]}"#,
            r#"{"a":{}}"#,
            "true",
        ),
        (r#"{"!=":[1,"1"]}"#, "0", "false"),
        (r#"{"===":[1,"1"]}"#, "0", "false"),
        (r#"{"===":[1,1.0]}"#, "0", "true"),
        (r#"{"===":[null,{"var":"x"}]}"#, "{}", "true"),
        (r#"{"!==":[1,"1"]}"#, "0", "true"),
        (
            r#"{"==":[{"var":""},12345678901234567890]}"#,
            "12345678901234567891",
            "false",
        ),
        (
            r#"{"==":[{"var":""},12345678901234567891]}"#,
            "12345678901234567891",
            "true",
        ),
        (
            r#"{"==":[{"var":""},"12345678901234567891"]}"#,
            "12345678901234567891",
            "true",
        ),
        (
            r#"{"<":[12345678901234567890,{"var":""}]}"#,
            "12345678901234567891",
            "true",
        ),
        (r#"{"<":[1,2]}"#, "0", "true"),
        (r#"{"<":["10","9"]}"#, "0", "true"),
        (r#"{"<":["10",9]}"#, "0", "false"),
        (r#"{"<":[null,1]}"#, "0", "true"),
        (r#"{"<":["x",1]}"#, "0", "false"),
        (r#"{">=":["x",1]}"#, "0", "false"),
        (r#"{">=":[2,2]}"#, "0", "true"),
        (r#"{">":["b","a"]}"#, "0", "true"),
        (r#"{">":["0x10",15]}"#, "0", "true"),
        (r#"{"<":[1,{"var":""},10]}"#, "5", "true"),
        (r#"{"<":[1,{"var":""},10]}"#, "10", "false"),
        (r#"{"<=":[1,{"var":""},10]}"#, "10", "true"),
        (r#"{"<":[{"var":""},1e308]}"#, "1e400", "false"),
        (r#"{">":[{"var":""},1e308]}"#, "1e400", "true"),
        (r#"{"==":[-0.0,0]}"#, "0", "true"),
    ]);
}

// D3
#[test]
fn arithmetic() {
    check(&[
        (r#"{"+":[1,"2",3.5]}"#, "0", "6.5"),
        (r#"{"+":"3.14 and more"}"#, "0", "3.14"),
        (r#"{"+":["x"]}"#, "0", "NaN"),
        (r#"{"-":[5,2]}"#, "0", "3"),
        (r#"{"-":"5"}"#, "0", "-5"),
        (r#"{"*":[2,"3",4]}"#, "0", "24"),
        (r#"{"/":[1,4]}"#, "0", "0.25"),
        (r#"{"/":[1,0]}"#, "0", "inf"),
        (r#"{"%":[7,3]}"#, "0", "1"),
        (r#"{"%":[-7,3]}"#, "0", "-1"),
        (r#"{"%":[7,0]}"#, "0", "NaN"),
        (r#"{"min":[3,"1",2]}"#, "0", "1"),
        (r#"{"max":[3,1,"x"]}"#, "0", "NaN"),
        (r#"{"max":[3,[7],null]}"#, "0", "7"),
    ]);
}

// D3
#[test]
fn texts() {
    check(&[
        (
            r#"{"cat":["a",1,null,true,[1,[2]],1.5]}"#,
            "0",
            r#""a1true1,21.5""#,
        ),
        (
            r#"{"cat":[1e21,"|",1e-7,"|",123456789012345680000]}"#,
            "0",
            r#""1e+21|1e-7|123456789012345680000""#,
        ),
        (r#"{"substr":["jsonlogic",4]}"#, "0", r#""logic""#),
        (r#"{"substr":["jsonlogic",-5]}"#, "0", r#""logic""#),
        (r#"{"substr":["jsonlogic",1,3]}"#, "0", r#""son""#),
        (r#"{"substr":["jsonlogic",4,-2]}"#, "0", r#""log""#),
        (r#"{"substr":["jsonlogic",-99,-99]}"#, "0", r#""""#),
        (r#"{"substr":["ü😀x",1,1]}"#, "0", r#""😀""#),
        (r#"{"substr":[1234,{"var":""},1e300]}"#, "1e400", r#""""#),
        (r#"{"in":["b","abc"]}"#, "0", "true"),
        (r#"{"in":["d","abc"]}"#, "0", "false"),
        (r#"{"in":[1,"a1"]}"#, "0", "true"),
        (r#"{"in":["",""]}"#, "0", "false"),
        (r#"{"in":[1,[0,1]]}"#, "0", "true"),
        (r#"{"in":["1",[0,1]]}"#, "0", "false"),
        (r#"{"in":["a",{"var":"x"}]}"#, "{}", "false"),
    ]);
}

// D3
#[test]
fn lists() {
    check(&[
        (r#"{"merge":[[1],2,[[3]]]}"#, "0", "[1,2,[3]]"),
        (
            r#"{"map":[{"var":""},{"*":[{"var":""},2]}]}"#,
            "[1,2]",
            "[2,4]",
        ),
        (r#"{"map":[{"var":"x"},1]}"#, "{}", "[]"),
        (
            r#"{"filter":[{"var":"a"},{">":[{"var":"n"},1]}]}"#,
            r#"{"a":[{"n":1},{"n":2}]}"#,
            r#"[{"n":2}]"#,
        ),
        (
            r#"{"reduce":[{"var":""},{"+":[{"var":"current"},{"var":"accumulator"}]},10]}"#,
            "[1,2]",
            "13",
        ),
        (
            r#"{"reduce":[{"var":"x"},1,{"var":"y"}]}"#,
            r#"{"y":4}"#,
            "4",
        ),
        (
            r#"{"all":[{"var":""},{">":[{"var":""},0]}]}"#,
            "[1,2]",
            "true",
        ),
        (
            r#"{"all":[{"var":""},{">":[{"var":""},1]}]}"#,
            "[1,2]",
            "false",
        ),
        (r#"{"all":[[],true]}"#, "0", "false"),
        (
            r#"{"some":[{"var":""},{">":[{"var":""},1]}]}"#,
            "[1,2]",
            "true",
        ),
        (r#"{"some":[[],true]}"#, "0", "false"),
        (
            r#"{"none":[{"var":""},{">":[{"var":""},1]}]}"#,
            "[1,2]",
            "false",
        ),
        (r#"{"none":[5,true]}"#, "0", "true"),
        (
            r#"{"all":[{"var":"tags"},{"in":[{"var":""},["a","b"]]}]}"#,
            r#"{"tags":["a","b","a"]}"#,
            "true",
        ),
    ]);
}

#[test]
fn what_is_wrong_is_named_by_its_place() {
    for (rule, path, says) in [
        ("", "", "must be JSON"),
        ("{", "", "must be JSON"),
        (r#"{"a":1} x"#, "", "must be JSON"),
        ("{}", "", "one member"),
        (r#"{"==":[1,1],"!=":[1,2]}"#, "", "one member"),
        (
            r#"{"regex":["a"]}"#,
            r#"["regex"]"#,
            "is no operator; there are var, ",
        ),
        (r#"{"log":"x"}"#, r#"["log"]"#, "is no operator"),
        (
            r#"{"and":[true,{"==":[1]}]}"#,
            r#"["and"][1]["=="]"#,
            "takes 2 arguments, not 1",
        ),
        (r#"{"!":[1,2]}"#, r#"["!"]"#, "takes 1 argument, not 2"),
        (
            r#"{"if":[]}"#,
            r#"["if"]"#,
            "takes 1 or more arguments, not 0",
        ),
        (
            r#"{"<":[1,2,3,4]}"#,
            r#"["<"]"#,
            "takes 2 to 3 arguments, not 4",
        ),
        (r#"{"in":["a",[1,{}]]}"#, r#"["in"][1][1]"#, "one member"),
        (
            r#"{"var":{"nope":1}}"#,
            r#"["var"]["nope"]"#,
            "is no operator",
        ),
    ] {
        let wrong = Rule::parse(rule).unwrap_err();
        assert_eq!(wrong.path, path, "{rule}: {wrong}");
        assert!(wrong.message.contains(says), "{rule}: {wrong}");
    }
    let nested = |n: usize| format!("{}1{}", r#"{"!":["#.repeat(n), "]}".repeat(n));
    assert!(Rule::parse(&nested(32)).is_ok());
    let wrong = Rule::parse(&nested(33)).unwrap_err();
    assert!(wrong.message.contains("64 deep"), "{wrong}");
    let deep = "[".repeat(4000) + &"]".repeat(4000);
    assert!(Rule::parse(&deep).is_err());
    let long = format!(r#"{{"cat":["{}"]}}"#, "x".repeat(MAX_BYTES));
    assert!(
        Rule::parse(&long)
            .unwrap_err()
            .message
            .contains("8192 bytes")
    );
    let name = "é".repeat(3000);
    assert!(
        Rule::parse(&format!(r#"{{"{name}":1}}"#))
            .unwrap_err()
            .path
            .len()
            < 200
    );
}

// Z6: a rule that would double its value or its work with each step ends soon.
#[test]
fn what_takes_too_long_is_given_up() {
    let list = format!("[{}]", vec!["1"; 60].join(","));
    for rule in [
        r#"{"reduce":[{"var":""},{"cat":[{"var":"accumulator"},{"var":"accumulator"}]},"x"]}"#,
        r#"{"reduce":[{"var":""},{"merge":[{"var":"accumulator"},{"var":"accumulator"}]},[1]]}"#,
        r#"{"map":[{"map":[{"var":""},[0,1,2,3,4,5,6,7,8,9]]},{"reduce":[{"var":""},{"+":[1,{"reduce":[[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],{"+":[1,1,1,1,1,1,1,1,1,1,1,1,1,1]},0]}]},0]}]}"#,
    ] {
        let began = std::time::Instant::now();
        assert_eq!(run(rule, &list), Err(Exhausted), "{rule}");
        assert!(
            began.elapsed().as_secs() < 5,
            "{rule}: {:?}",
            began.elapsed()
        );
    }
}

// Z6: a value that nests deeper with each step would take the stack with it.
#[test]
fn what_nests_too_deep_is_given_up() {
    let list = format!("[{}]", vec!["1"; 5000].join(","));
    for rule in [
        r#"{"reduce":[{"var":""},[{"var":"accumulator"}],[]]}"#,
        r#"{"reduce":[{"var":""},{"var":""},0]}"#,
        r#"{"reduce":[{"var":""},{"map":[[1],{"var":""}]},0]}"#,
    ] {
        let done = run(rule, &list);
        assert!(done.is_err() || rule.contains("map"), "{rule}: {done:?}");
    }
}

#[test]
fn payloads_are_read_as_they_may_be_written() {
    for (text, expected) in [
        (" [ 1 , 2.50 , -3e2 ] ", "[1,2.5,-300]"),
        (r#""\ud800x\udc00\n\/""#, r#""�x�\n/""#),
        (r#""\ud800\u0041""#, r#""�A""#),
        ("\"\\ud83d\\ude00\"", r#""😀""#),
        ("1e400", "inf"),
        (
            "170141183460469231731687303715884105728",
            "170141183460469230000000000000000000000",
        ),
        ("\t{}\r\n", "{}"),
    ] {
        assert_eq!(shown(&Value::parse(text, 64).unwrap()), expected, "{text}");
    }
    for bad in [
        "",
        "{",
        "[1",
        "[1,]",
        "nul",
        "\"",
        "\"\\u12\"",
        "\"\\uzzzz\"",
        "1 2",
        "{\"a\"}",
        "[[[]]]x",
    ] {
        assert_eq!(Value::parse(bad, 64), None, "{bad}");
    }
    assert!(Value::parse("[[1]]", 2).is_some());
    assert!(Value::parse("[[1]]", 1).is_none());
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value as Json;
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        (-3i32..4).prop_map(Json::from),
        "[a-c.0-2]{0,4}".prop_map(Json::from),
        "\\PC{0,6}".prop_map(Json::from),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
            prop::collection::vec(("[a-c]", inner), 0..4)
                .prop_map(|m| Json::Object(m.into_iter().collect())),
        ]
    })
}

/// Any operator, with arguments of which most are operations.
fn rule() -> impl Strategy<Value = serde_json::Value> {
    let operators = [
        "var",
        "missing",
        "missing_some",
        "if",
        "?:",
        "and",
        "or",
        "!",
        "!!",
        "==",
        "!=",
        "===",
        "!==",
        "<",
        "<=",
        ">",
        ">=",
        "+",
        "-",
        "*",
        "/",
        "%",
        "min",
        "max",
        "cat",
        "substr",
        "in",
        "merge",
        "map",
        "filter",
        "reduce",
        "all",
        "some",
        "none",
        "nope",
    ];
    let leaf = prop_oneof![
        json(),
        "(|a|b|a\\.b|0|current|accumulator)".prop_map(|name| serde_json::json!({"var": name})),
    ];
    leaf.prop_recursive(6, 60, 4, move |inner| {
        (
            prop::sample::select(operators.to_vec()),
            prop::collection::vec(inner, 0..4),
        )
            .prop_map(|(operator, arguments)| serde_json::json!({operator: arguments}))
    })
}

proptest! {
    // D3, E3: whatever the rule and the payload are, it ends, and within its fuel.
    #[test]
    fn no_rule_and_no_payload_does_harm(rule in rule(), data in json()) {
        let (rule, data) = (rule.to_string(), data.to_string());
        let parsed = Value::parse(&data, 64);
        prop_assert!(parsed.is_some(), "{}", data);
        if let (Ok(rule), Some(data)) = (Rule::parse(&rule), parsed) {
            let mut fuel = Fuel(FUEL);
            let first = rule.evaluate(&data, &mut fuel).map(|v| shown(&v));
            prop_assert!(fuel.0 <= FUEL);
            let mut again = Fuel(FUEL);
            prop_assert_eq!(first, rule.evaluate(&data, &mut again).map(|v| shown(&v)));
        }
    }

    #[test]
    fn text_of_any_kind_is_read_or_refused(text in "\\PC{0,60}|[\\[\\]{}\",:\\\\u0-9a-f ]{0,60}") {
        let _ = Rule::parse(&text);
        // What is JSON for others is so here.
        let ours = Value::parse(&text, 64).is_some();
        if serde_json::from_str::<serde_json::Value>(&text).is_ok() {
            prop_assert!(ours, "{}", text);
        }
    }
}
