//! Switches: what is open to whom. Four have names of their own, and any method
//! of ours has one by its full name.

use super::id::Micros;

/// One of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// Consumers' calls are answered.
    Api,
    /// Of the consumers' keys only canary keys are admitted.
    CanaryOnly,
    /// Publishing, and changing subscriptions.
    Webhooks,
    /// Sending.
    Delivery,
}

impl Switch {
    /// All four, in the order in which a launch turns them.
    pub const ALL: [Self; 4] = [Self::Api, Self::CanaryOnly, Self::Webhooks, Self::Delivery];

    /// Those that the emergency stop holds off.
    pub const STOPPABLE: [Self; 3] = [Self::Api, Self::Webhooks, Self::Delivery];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "external_api.enabled",
            Self::CanaryOnly => "external_api.canary_only",
            Self::Webhooks => "webhooks.enabled",
            Self::Delivery => "webhooks.delivery.enabled",
        }
    }

    /// The environment variable that pins it.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Api => "ONERING_EXTERNAL_API_ENABLED",
            Self::CanaryOnly => "ONERING_EXTERNAL_API_CANARY_ONLY",
            Self::Webhooks => "ONERING_WEBHOOKS_ENABLED",
            Self::Delivery => "ONERING_WEBHOOKS_DELIVERY_ENABLED",
        }
    }

    /// The one of that name; none for a method's.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }
}

/// What a switch is before anybody set it: the four are off, a method is on.
#[must_use]
pub fn default_of(name: &str) -> bool {
    Switch::find(name).is_none()
}

/// A switch as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// What it is set to.
    pub enabled: bool,
    /// Whether the emergency stop holds it off.
    pub stopped: bool,
    /// When it was last changed, by the store's clock.
    pub updated_at: Micros,
    /// Who changed it: a key's id.
    pub updated_by: String,
    /// Why.
    pub reason: String,
    /// The configuration's revision of that change.
    pub rev: i64,
}

impl Stored {
    /// One that nobody has changed yet.
    #[must_use]
    pub fn untouched(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            enabled: default_of(name),
            stopped: false,
            updated_at: 0,
            updated_by: String::new(),
            reason: String::new(),
            rev: 0,
        }
    }

    /// The value in force: the stop, else the pin, else what is stored.
    #[must_use]
    pub fn in_force(&self, pin: Option<bool>) -> bool {
        !self.stopped && pin.unwrap_or(self.enabled)
    }
}

/// What is done to a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is set.
    Set(bool),
    /// It is held off.
    Stop,
    /// It is not held off any more.
    Lift,
}

impl Change {
    /// Its name in the audit log.
    #[must_use]
    pub const fn action(self) -> &'static str {
        match self {
            Self::Set(_) => "switch.set",
            Self::Stop => "switch.stop",
            Self::Lift => "switch.lift",
        }
    }

    /// The inverse of [`action`](Self::action), with the value that was written.
    #[must_use]
    pub fn read(action: &str, new: &str) -> Option<Self> {
        match (action, new) {
            ("switch.set", "on") => Some(Self::Set(true)),
            ("switch.set", "off") => Some(Self::Set(false)),
            ("switch.stop", _) => Some(Self::Stop),
            ("switch.lift", _) => Some(Self::Lift),
            _ => None,
        }
    }

    /// Makes the change; the value before and after, as the audit log has them.
    /// None where there is nothing to lift.
    pub fn make(self, switch: &mut Stored) -> Option<(&'static str, &'static str)> {
        let value = |on| if on { "on" } else { "off" };
        let shown = |s: &Stored| {
            if s.stopped {
                "stopped"
            } else {
                value(s.enabled)
            }
        };
        match self {
            // Of one that is stopped this sets what rules after the stop.
            Self::Set(on) => {
                let before = std::mem::replace(&mut switch.enabled, on);
                Some((value(before), value(on)))
            }
            Self::Stop => {
                let before = shown(switch);
                switch.stopped = true;
                Some((before, shown(switch)))
            }
            Self::Lift if switch.stopped => {
                switch.stopped = false;
                Some(("stopped", shown(switch)))
            }
            Self::Lift => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // X1, X4: the stop is stronger than a pin, a pin than what is stored.
    #[test]
    fn the_strongest_rules() {
        let mut s = Stored::untouched("webhooks.enabled");
        assert!(!s.in_force(None), "off until it is set");
        for stored in [false, true] {
            s.enabled = stored;
            s.stopped = false;
            assert_eq!(s.in_force(None), stored);
            assert!(s.in_force(Some(true)));
            assert!(!s.in_force(Some(false)));
            s.stopped = true;
            for pin in [None, Some(true), Some(false)] {
                assert!(!s.in_force(pin));
            }
        }
        // X5
        assert!(Stored::untouched("onering.v1.KeyService/GetKey").in_force(None));
    }

    // X3, X4: what is told of a change, and that it reads back.
    #[test]
    fn changes_are_told() {
        let mut s = Stored::untouched("webhooks.enabled");
        let mut told = Vec::new();
        for change in [
            Change::Lift,
            Change::Set(true),
            Change::Stop,
            Change::Stop,
            Change::Set(false),
            Change::Lift,
            Change::Lift,
        ] {
            let made = change.make(&mut s);
            if let Some((_, new)) = made {
                assert_eq!(Change::read(change.action(), new), Some(change));
            }
            told.push(made);
        }
        let expected = [
            None,
            Some(("off", "on")),
            Some(("on", "stopped")),
            Some(("stopped", "stopped")),
            Some(("on", "off")),
            Some(("stopped", "off")),
            None,
        ];
        assert_eq!(told, expected);
    }
}
