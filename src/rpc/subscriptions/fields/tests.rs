use super::*;
use crate::{
    domain::{
        id::{SubscriptionId, TenantId},
        subscription::Sealed,
    },
    rpc::subscriptions::{blank, view},
    settings::Settings,
};

const NOW: Micros = 1_700_000_000_000_000;

fn live() -> Live {
    Settings::from_vars(std::iter::empty()).unwrap().live
}

fn subscription() -> Subscription {
    let id = SubscriptionId::new(NOW, TenantId::DEFAULT.part());
    Subscription {
        url: "https://example.com/hook".into(),
        secret: Sealed(vec![1]),
        ..blank(id, TenantId::DEFAULT, Scheme::V1)
    }
}

fn run(s: &mut Subscription, given: &v1::Subscription, names: &[&str]) -> Result<(), Error> {
    let mut faults = Faults::default();
    apply(
        s,
        &mut Opened::default(),
        given,
        names,
        &live(),
        NOW,
        &mut faults,
    );
    faults.done()
}

fn fields(error: &Error) -> Vec<&str> {
    error.violations.iter().map(|v| v.field.as_str()).collect()
}

// D3: every field that is wrong is named.
#[test]
fn bad_fields_are_named() {
    let headers = [
        ("X-Webhook-Id", "a"),
        ("content-type", "a"),
        ("CE-Type", "a"),
        ("ce-comexample", "a"),
        ("a b", "a"),
        ("x-ok", "a\u{1}"),
        ("authorization", "Bearer x"),
    ];
    let given = v1::Subscription {
        url: "no url".into(),
        event_types: ["a.*", "a*", "a.*"].map(Into::into).into(),
        headers: headers.map(|(n, v)| (n.into(), v.into())).into(),
        description: "d".repeat(501),
        signature_scheme: 9,
        timeout_seconds: 61,
        max_in_flight: -1,
        max_age_seconds: 2_592_001,
        payload_format: 4,
        breaker: Some(v1::BreakerSettings {
            failures_to_open: 1001,
            open_seconds: -1,
            ..v1::BreakerSettings::default()
        }),
        rate_limit_per_second: 10_001,
        ..v1::Subscription::default()
    };
    let error = run(&mut subscription(), &given, &CHANGEABLE).unwrap_err();
    let wrong = [
        "url",
        "event_types[1]",
        "event_types[2]",
        r#"headers["CE-Type"]"#,
        r#"headers["X-Webhook-Id"]"#,
        r#"headers["a b"]"#,
        r#"headers["content-type"]"#,
        r#"headers["x-ok"]"#,
        "description",
        "signature_scheme",
        "timeout_seconds",
        "max_in_flight",
        "max_age_seconds",
        "payload_format",
        "breaker.failures_to_open",
        "breaker.open_seconds",
        "rate_limit_per_second",
    ];
    assert_eq!(fields(&error), wrong);
}

#[test]
fn what_is_named_and_not_set_goes_back_to_its_default() {
    let mut s = subscription();
    s.timeout = 5;
    s.max_in_flight = 3;
    s.max_age = 7;
    s.rate_limit = 9;
    s.breaker.disabled = true;
    s.format = PayloadFormat::CloudEventsBinary;
    s.event_types = vec!["a".into()];
    s.schedule = Some(Schedule::burst());
    s.disabled = Some(Disabled {
        at: NOW - 10,
        reason: "gone".into(),
    });
    let names: Vec<&str> = CHANGEABLE.into_iter().filter(|n| *n != "url").collect();
    run(&mut s, &v1::Subscription::default(), &names).unwrap();
    assert_eq!((s.timeout, s.max_in_flight, s.max_age), (15, 100, 0));
    assert_eq!((s.rate_limit, s.breaker), (0, BreakerChoice::default()));
    assert_eq!(s.event_types, ["*"]);
    assert_eq!(s.format, PayloadFormat::Standard);
    assert_eq!((s.schedule, s.disabled, s.held), (None, None, 10));
    let error = run(&mut subscription(), &v1::Subscription::default(), &["url"]).unwrap_err();
    assert_eq!(fields(&error), ["url"]);
}

// D3: what was held is not counted twice, and disabling twice changes nothing.
#[test]
fn held_time_adds_up() {
    let mut s = subscription();
    enable(&mut s, false, 100);
    enable(&mut s, false, 150);
    enable(&mut s, true, 200);
    enable(&mut s, true, 250);
    enable(&mut s, false, 300);
    enable(&mut s, true, 290);
    assert_eq!((s.held, s.disabled), (100, None));
}

// A10: refused at creation, with a reason of its own.
#[test]
fn an_endpoint_that_is_not_allowed() {
    for bad in [
        "http://example.com/",
        "https://127.0.0.1/",
        "https://10.0.0.1",
        "ftp://example.com",
    ] {
        let given = v1::Subscription {
            url: bad.into(),
            ..v1::Subscription::default()
        };
        let error = run(&mut subscription(), &given, &["url"]).unwrap_err();
        assert_eq!(error.reason, Reason::EndpointNotAllowed, "{bad}");
        assert_eq!(fields(&error), ["url"]);
    }
}

// What is stored can be called: the sender parses it as an `http::Uri`.
#[test]
fn a_url_is_stored_as_it_is_called() {
    for (given, stored) in [
        ("https://example.com/a?b=c", "https://example.com/a?b=c"),
        (
            "https://b\u{fc}cher.example/x",
            "https://xn--bcher-kva.example/x",
        ),
    ] {
        let mut s = subscription();
        let wanted = v1::Subscription {
            url: given.into(),
            ..v1::Subscription::default()
        };
        run(&mut s, &wanted, &["url"]).unwrap();
        assert_eq!(s.url, stored);
        assert!(s.url.parse::<Uri>().is_ok());
    }
}

// Policy may have changed since: a client that writes all back is not refused.
#[test]
fn an_endpoint_that_stays_is_not_checked_again() {
    let mut s = subscription();
    s.url = "http://127.0.0.1:9/".into();
    let given = v1::Subscription {
        url: s.url.clone(),
        ..v1::Subscription::default()
    };
    run(&mut s, &given, &["url"]).unwrap();
}

// A2: presets, and what is a preset's is shown as one.
#[test]
fn schedules() {
    let preset = |p: RetryPreset| RetrySchedule {
        preset: p.into(),
        ..RetrySchedule::default()
    };
    let numbers = |max_attempts, waits: &[i32]| RetrySchedule {
        preset: 0,
        max_attempts,
        backoff_seconds: waits.to_vec(),
    };
    for given in [
        preset(RetryPreset::Standard),
        preset(RetryPreset::Burst),
        numbers(1, &[]),
        numbers(5, &[1, 86_400]),
    ] {
        let mut faults = Faults::default();
        let stored = schedule(Some(&given), &mut faults).unwrap();
        faults.done().unwrap();
        assert_eq!(view::schedule(&stored), given);
    }
    assert_eq!(
        view::schedule(&Schedule::burst()),
        preset(RetryPreset::Burst)
    );
    let mut faults = Faults::default();
    assert_eq!(schedule(Some(&RetrySchedule::default()), &mut faults), None);
    faults.done().unwrap();
    for bad in [
        RetrySchedule {
            preset: 1,
            ..numbers(3, &[])
        },
        RetrySchedule {
            preset: 9,
            ..RetrySchedule::default()
        },
        numbers(0, &[1]),
        numbers(21, &[1]),
        numbers(3, &[]),
        numbers(3, &[0]),
        numbers(3, &[86_401]),
        numbers(3, &[1; 21]),
    ] {
        let mut faults = Faults::default();
        schedule(Some(&bad), &mut faults);
        assert!(faults.done().is_err(), "{bad:?}");
    }
}

// S2: an Ed25519 key is another kind of secret.
#[test]
fn a_scheme_stays_on_its_side() {
    let given = |scheme: SignatureScheme| v1::Subscription {
        signature_scheme: scheme.into(),
        ..v1::Subscription::default()
    };
    let mut s = subscription();
    run(
        &mut s,
        &given(SignatureScheme::Plain),
        &["signature_scheme"],
    )
    .unwrap();
    assert_eq!(s.scheme, Scheme::Plain);
    let error = run(
        &mut s,
        &given(SignatureScheme::Ed25519),
        &["signature_scheme"],
    )
    .unwrap_err();
    assert_eq!(error.reason, Reason::FailedPrecondition);
}
