//! A subscription's filter.

use crate::{domain::jsonlogic::Rule, rpc::check::Faults};

/// A filter that can be evaluated, as it was written; none for no text and for
/// `null`. An operation, for anything else would pass all or nothing.
pub(super) fn read(given: &[u8], faults: &mut Faults) -> Option<String> {
    let Ok(text) = std::str::from_utf8(given) else {
        faults.add("filter", "must be JSON in UTF-8");
        return None;
    };
    let text = text.trim_ascii();
    if matches!(text, "" | "null") {
        return None;
    }
    match Rule::parse(text) {
        Ok(_) if text.starts_with('{') => {}
        Ok(_) => faults.add("filter", "must be a JSONLogic operation, a JSON object"),
        Err(wrong) => faults.add(format!("filter{}", wrong.path), wrong.message),
    }
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(given: &[u8]) -> Result<Option<String>, (String, String)> {
        let mut faults = Faults::under("subscription.");
        let read = read(given, &mut faults);
        faults.done().map(|()| read).map_err(|e| {
            let one = &e.violations[0];
            (one.field.clone(), one.message.clone())
        })
    }

    // D3: kept as it was written; what is wrong is named by its place.
    #[test]
    fn a_filter_is_an_operation() {
        let good = r#"{ "==" : [ {"var":"n"}, 12345678901234567890 ] }"#;
        assert_eq!(run(format!(" {good}\n").as_bytes()).unwrap().unwrap(), good);
        for none in ["", "null", " null "] {
            assert_eq!(run(none.as_bytes()), Ok(None));
        }
        for (bad, field) in [
            (&b"true"[..], "subscription.filter"),
            (b"[]", "subscription.filter"),
            (b"\xff", "subscription.filter"),
            (b"{", "subscription.filter"),
            (
                b"{\"and\":[{\"x\":1}]}",
                "subscription.filter[\"and\"][0][\"x\"]",
            ),
        ] {
            assert_eq!(run(bad).unwrap_err().0, field);
        }
    }
}
