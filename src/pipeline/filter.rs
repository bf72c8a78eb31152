//! Whether an event's payload passes subscriptions' filters.

use std::cell::{Cell, OnceCell};

use crate::{
    domain::{
        id::SubscriptionId,
        jsonlogic::{Fuel, Rule, Value},
    },
    rest::json::MAX_DEPTH,
};

/// What one filter may take, in steps.
const FILTER: u32 = 50_000;
/// What all filters of one event may take together, in steps: they are evaluated
/// while its publisher waits.
const EVENT: u32 = 250_000;

/// An event's payload, read where the first filter asks for it.
pub(super) struct Payload<'d> {
    text: &'d [u8],
    read: OnceCell<Option<Value<'d>>>,
    left: Cell<u32>,
}

impl<'d> Payload<'d> {
    /// A payload's JSON text.
    pub(super) fn new(text: &'d [u8]) -> Self {
        Self {
            text,
            read: OnceCell::new(),
            left: Cell::new(EVENT),
        }
    }

    /// Whether the payload passes. Where that can't be told, which is where the
    /// filter takes too long, it does: an event too many does less harm than one
    /// too few.
    pub(super) fn passes(&self, filter: &Rule, subscription: SubscriptionId) -> bool {
        let payload = self.read.get_or_init(|| {
            let text = std::str::from_utf8(self.text).ok()?;
            Value::parse(text, u16::try_from(MAX_DEPTH).unwrap_or(u16::MAX))
        });
        let Some(payload) = payload else { return true };
        let granted = self.left.get().min(FILTER);
        let mut fuel = Fuel(granted);
        let holds = filter.holds(payload, &mut fuel);
        self.left.set(self.left.get() - (granted - fuel.left()));
        holds.unwrap_or_else(|e| {
            tracing::debug!(
                subscription.id = %subscription, error.message = %e,
                "filter given up: the payload passes it"
            );
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::Part;

    fn passes(payload: &Payload<'_>, filter: &str) -> bool {
        let id = SubscriptionId::new(1, Part::new(0));
        payload.passes(&Rule::parse(filter).unwrap(), id)
    }

    // D3: the payload is the root; it is read once, and only for a filter.
    #[test]
    fn the_payload_is_the_root() {
        let payload = Payload::new(br#"{"amount":5}"#);
        assert!(payload.read.get().is_none());
        assert!(passes(&payload, r#"{"==":[{"var":"amount"},5]}"#));
        assert!(!passes(&payload, r#"{">":[{"var":"amount"},5]}"#));
        let five = Payload::new(b"5");
        assert!(passes(&five, r#"{"==":[{"var":""},5]}"#));
    }

    // D3, E3: what takes too long passes, alone and together.
    #[test]
    fn what_takes_too_long_passes() {
        let list = format!("[{}]", vec!["1"; 60].join(","));
        let payload = Payload::new(list.as_bytes());
        let double = r#"{"!":{"reduce":[{"var":""},{"merge":[{"var":"accumulator"},{"var":"accumulator"}]},[1]]}}"#;
        let no = r#"{"==":[1,2]}"#;
        for n in 0..5 {
            assert!(!passes(&payload, no), "{n}");
            assert!(passes(&payload, double), "{n}");
        }
        assert_eq!(payload.left.get(), 0);
        assert!(passes(&payload, no));
    }
}
