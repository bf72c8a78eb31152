//! What a key's fields may hold, and which of them an update changes.

use ipnet::IpNet;

use super::view::View;
use crate::{
    domain::{
        id::Micros,
        key::{Key, Kind},
        network,
    },
    proto::v1::{self, KeyKind},
    rpc::{
        check::{Faults, echo},
        convert::micros,
        mask::{self, Fixed},
    },
    settings::Live,
};

/// The tier of keys that name none.
const DEFAULT_TIER: &str = "free";

/// What can be changed of a key.
pub(super) const CHANGEABLE: [&str; 8] = [
    "name",
    "tier",
    "scopes",
    "canary_enabled",
    "rate_limit_per_hour",
    "expire_time",
    "metadata",
    "allowed_cidrs",
];

/// What a key is for; a consumer's where it is not said.
pub(super) fn kind(number: i32, faults: &mut Faults) -> Kind {
    match KeyKind::try_from(number) {
        Ok(KeyKind::Admin) => Kind::Admin,
        Ok(KeyKind::Consumer | KeyKind::Unspecified) => Kind::Consumer,
        Err(_) => {
            faults.add("kind", "takes KEY_KIND_CONSUMER or KEY_KIND_ADMIN");
            Kind::Consumer
        }
    }
}

/// The fields that an update names, or where it names none, those that it sets.
pub(super) fn named(
    given: &v1::Key,
    now: &View,
    update_mask: Option<&prost_types::FieldMask>,
    faults: &mut Faults,
) -> Vec<&'static str> {
    let now = &now.0;
    let fixed = [
        Fixed::new("key_id", &given.key_id, &now.key_id),
        Fixed::new("tenant", &given.tenant, &now.tenant),
        Fixed::new("kind", &given.kind, &now.kind),
        Fixed::new("status", &given.status, &now.status),
        Fixed::new(
            "effective_rate_limit_per_hour",
            &given.effective_rate_limit_per_hour,
            &now.effective_rate_limit_per_hour,
        ),
        Fixed::new("create_time", &given.create_time, &now.create_time),
        Fixed::new("update_time", &given.update_time, &now.update_time),
        Fixed::moving("last_used_time"),
        Fixed::moving("previous_secret_expire_time"),
        Fixed::moving("new_secret_first_used_time"),
    ];
    let set = |name: &str| match name {
        "name" => !given.name.is_empty(),
        "tier" => !given.tier.is_empty(),
        "scopes" => !given.scopes.is_empty(),
        "canary_enabled" => given.canary_enabled,
        "rate_limit_per_hour" => given.rate_limit_per_hour.is_some(),
        "expire_time" => given.expire_time.is_some(),
        "metadata" => !given.metadata.is_empty(),
        "allowed_cidrs" => !given.allowed_cidrs.is_empty(),
        _ => false,
    };
    mask::changed(update_mask, &CHANGEABLE, set, &fixed, faults)
}

/// Takes these fields over into a key.
pub(super) fn apply(
    key: &mut Key,
    given: &v1::Key,
    names: &[&str],
    live: &Live,
    now: Micros,
    faults: &mut Faults,
) {
    let admin = key.kind == Kind::Admin;
    for name in names {
        match *name {
            "name" => key.name = faults.text("name", &given.name, 200, false),
            "tier" if !admin => key.tier = tier(&given.tier, &key.tier, live, faults),
            "tier" if !given.tier.is_empty() => {
                faults.add("tier", "is not for admin keys: they have no limit");
            }
            "scopes" => key.scopes = scopes(&given.scopes, faults),
            "canary_enabled" => {
                if admin && given.canary_enabled {
                    faults.add("canary_enabled", "is not for admin keys");
                }
                key.canary = given.canary_enabled;
            }
            "rate_limit_per_hour" => {
                let limit = given.rate_limit_per_hour;
                if limit.is_some() && admin {
                    faults.add(
                        "rate_limit_per_hour",
                        "is not for admin keys: they have no limit",
                    );
                } else if limit.is_some_and(|n| !(1..=1_000_000_000).contains(&n)) {
                    faults.add("rate_limit_per_hour", "takes 1 to 1000000000");
                }
                key.rate_limit_per_hour = limit;
            }
            "expire_time" => {
                key.expires_at = expiry(given.expire_time.as_ref(), key.expires_at, now, faults);
            }
            "metadata" => key.metadata = faults.metadata(&given.metadata),
            "allowed_cidrs" => key.allowed_cidrs = networks(&given.allowed_cidrs, faults),
            _ => {}
        }
    }
}

fn tier(given: &str, before: &str, live: &Live, faults: &mut Faults) -> String {
    let given = if given.is_empty() {
        DEFAULT_TIER
    } else {
        given
    };
    if !live.tiers.contains_key(given) && given != before {
        let known: Vec<&str> = live.tiers.keys().map(String::as_str).collect();
        faults.add(
            "tier",
            format!("takes a configured tier: {}", known.join(", ")),
        );
    }
    given.to_owned()
}

fn scopes(given: &[String], faults: &mut Faults) -> Vec<String> {
    if given.len() > 64 {
        faults.add("scopes", "has at most 64 entries");
    }
    for (i, scope) in given.iter().enumerate() {
        if !is_scope(scope) {
            faults.add(
                format!("scopes[{i}]"),
                "takes `verb:noun`, each of a-z, 0-9, _ and -, beginning with a letter",
            );
        } else if given[..i].contains(scope) {
            faults.add(
                format!("scopes[{i}]"),
                format!("{} stands here twice", echo(scope)),
            );
        }
    }
    given.to_vec()
}

fn networks(given: &[String], faults: &mut Faults) -> Vec<IpNet> {
    if given.len() > 64 {
        faults.add("allowed_cidrs", "has at most 64 entries");
        return Vec::new();
    }
    let mut nets = Vec::with_capacity(given.len());
    for (i, text) in given.iter().enumerate() {
        match network::parse_network(text) {
            None => faults.add(
                format!("allowed_cidrs[{i}]"),
                "takes a network such as 203.0.113.0/24 or 2001:db8::/32, or an address",
            ),
            Some(net) if nets.contains(&net) => {
                faults.add(
                    format!("allowed_cidrs[{i}]"),
                    format!("{net} stands here twice"),
                );
            }
            Some(net) => nets.push(net),
        }
    }
    nets
}

/// Whether a text is a scope: `verb:noun`, of at most 32 and 64 characters.
pub(super) fn is_scope(text: &str) -> bool {
    let word = |word: &str, most| {
        (1..=most).contains(&word.len())
            && word.starts_with(|c: char| c.is_ascii_lowercase())
            && word
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
    };
    text.split_once(':')
        .is_some_and(|(verb, noun)| word(verb, 32) && word(noun, 64))
}

fn expiry(
    given: Option<&prost_types::Timestamp>,
    before: Option<Micros>,
    now: Micros,
    faults: &mut Faults,
) -> Option<Micros> {
    let given = given?;
    let time = micros(given);
    match time {
        None => faults.add("expire_time", "takes a time in the years 1 to 9999"),
        Some(at) if at <= now && time != before => {
            faults.add("expire_time", "must be in the future");
        }
        Some(_) => {}
    }
    time
}

#[cfg(test)]
pub(in crate::rpc::keys) mod tests {
    use super::*;
    use crate::{
        domain::id::{KeyId, Part, TenantId},
        domain::key::{Hashed, Status},
        error::Error,
        rpc::convert::timestamp,
        settings::Settings,
    };

    const NOW: Micros = 1_700_000_000_000_000;

    pub(in crate::rpc::keys) fn live() -> Live {
        Settings::from_vars(std::iter::empty()).unwrap().live
    }

    pub(in crate::rpc::keys) fn key(kind: Kind) -> Key {
        Key {
            id: KeyId::new(NOW, Part::new(0)),
            tenant: Some(TenantId::DEFAULT),
            kind,
            name: String::new(),
            tier: "pro".into(),
            scopes: Vec::new(),
            canary: false,
            rate_limit_per_hour: Some(7),
            allowed_cidrs: Vec::new(),
            expires_at: None,
            metadata: Vec::new(),
            status: Status::Active,
            secret: Hashed {
                pepper: 1,
                digest: [0; 32],
            },
            previous: None,
            whole_text: false,
            created_at: NOW,
            updated_at: NOW,
        }
    }

    fn run(key: &mut Key, given: &v1::Key, names: &[&str]) -> Result<(), Error> {
        let mut faults = Faults::default();
        apply(key, given, names, &live(), NOW, &mut faults);
        faults.done()
    }

    // K2: every field that is wrong is named.
    #[test]
    fn bad_fields_are_named() {
        let given = v1::Key {
            name: "x".repeat(201),
            tier: "gold".into(),
            scopes: ["read:rings", "rings", "read:rings"].map(Into::into).into(),
            rate_limit_per_hour: Some(0),
            expire_time: Some(timestamp(NOW)),
            allowed_cidrs: ["10.1.2.3/8", "10.0.0.0/8", "10.0.0.0/33"]
                .map(Into::into)
                .into(),
            ..v1::Key::default()
        };
        let error = run(&mut key(Kind::Consumer), &given, &CHANGEABLE).unwrap_err();
        let fields: Vec<_> = error.violations.iter().map(|v| v.field.as_str()).collect();
        let wrong = [
            "name",
            "tier",
            "scopes[1]",
            "scopes[2]",
            "rate_limit_per_hour",
            "expire_time",
            "allowed_cidrs[1]",
            "allowed_cidrs[2]",
        ];
        assert_eq!(fields, wrong);
    }

    #[test]
    fn what_is_named_and_not_set_is_cleared() {
        let mut key = key(Kind::Consumer);
        run(
            &mut key,
            &v1::Key::default(),
            &["tier", "rate_limit_per_hour"],
        )
        .unwrap();
        assert_eq!((key.tier.as_str(), key.rate_limit_per_hour), ("free", None));
    }

    // An expired key stays changeable by a client that writes all of it back.
    #[test]
    fn a_past_expiry_may_stay() {
        let mut key = key(Kind::Consumer);
        key.expires_at = Some(NOW - 1);
        let given = v1::Key {
            expire_time: Some(timestamp(NOW - 1)),
            ..v1::Key::default()
        };
        run(&mut key, &given, &["expire_time"]).unwrap();
        let other = v1::Key {
            expire_time: Some(timestamp(NOW - 2)),
            ..v1::Key::default()
        };
        assert!(run(&mut key, &other, &["expire_time"]).is_err());
    }

    // K13: admin keys are not limited.
    #[test]
    fn an_admin_key_has_no_tier_and_no_limit() {
        let given = v1::Key {
            tier: "pro".into(),
            canary_enabled: true,
            rate_limit_per_hour: Some(5),
            ..v1::Key::default()
        };
        let error = run(&mut key(Kind::Admin), &given, &CHANGEABLE).unwrap_err();
        assert_eq!(error.violations.len(), 3);
        run(&mut key(Kind::Admin), &v1::Key::default(), &CHANGEABLE).unwrap();
    }

    #[test]
    fn scopes_are_verb_and_noun() {
        for good in ["read:rings", "external:admin", "a:b", "keys:verify-all_1"] {
            assert!(is_scope(good), "{good}");
        }
        for bad in [
            "",
            ":",
            "read",
            "read:",
            ":rings",
            "Read:rings",
            "read:rings:all",
            "1:a",
            "a b:c",
        ] {
            assert!(!is_scope(bad), "{bad}");
        }
        assert!(!is_scope(&format!("{}:a", "v".repeat(33))));
        assert!(!is_scope(&format!("a:{}", "n".repeat(65))));
    }

    // A client that reads, edits and writes back all of a key.
    #[test]
    fn a_whole_key_can_be_written_back() {
        let shown = View(v1::Key {
            key_id: "key_1".into(),
            tenant: "default".into(),
            kind: 1,
            status: 1,
            create_time: Some(timestamp(NOW)),
            ..v1::Key::default()
        });
        let names = [
            "key_id",
            "tenant",
            "kind",
            "status",
            "create_time",
            "last_used_time",
        ];
        let paths = names.into_iter().chain(CHANGEABLE).map(Into::into);
        let all = prost_types::FieldMask {
            paths: paths.collect(),
        };
        let mut given = shown.0.clone();
        given.last_used_time = Some(timestamp(1));
        let mut faults = Faults::under("key.");
        assert_eq!(named(&given, &shown, Some(&all), &mut faults), CHANGEABLE);
        faults.done().unwrap();
        given.status = 2;
        for mask in [Some(&all), None] {
            named(&given, &shown, mask, &mut faults);
            assert_eq!(faults.done().unwrap_err().violations[0].field, "key.status");
        }
    }
}
