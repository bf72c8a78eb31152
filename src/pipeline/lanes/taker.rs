//! Who takes jobs: the embedded worker, or a worker at the other end of a stream.
//! A lane's class says by what way its deliveries leave, a taker which lanes it
//! may take from.

use std::{collections::HashSet, sync::Arc};

use crate::{
    domain::{
        id::{SubscriptionId, TenantId},
        subscription::Kind,
    },
    target::Target,
};

/// By what way a lane's deliveries leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Class {
    /// Over HTTP, sent by the embedded worker or a relay.
    #[default]
    Webhook,
    /// Over HTTP with a client certificate, whose key does not leave the node.
    Certified,
    /// Over a stream, to whoever consumes it.
    Stream,
    /// Over a stream, to who names its subscription: that lives as long as somebody
    /// does.
    Temporary,
}

impl Class {
    /// How many there are.
    pub(super) const COUNT: usize = 4;

    /// The class of a subscription's lane.
    #[must_use]
    pub fn of(target: &Target) -> Self {
        match target.subscription.kind {
            Kind::Stream if target.subscription.lifetime.is_some() => Self::Temporary,
            Kind::Stream => Self::Stream,
            Kind::Webhook if target.client_certificate.is_some() => Self::Certified,
            Kind::Webhook => Self::Webhook,
        }
    }

    /// Its place in a list of all.
    pub(super) const fn index(self) -> usize {
        self as usize
    }

    /// Whether its deliveries are consumed at the other ends of streams.
    #[must_use]
    pub const fn is_consumed(self) -> bool {
        matches!(self, Self::Stream | Self::Temporary)
    }

    /// Whether its lanes share the attempts that can be under way at once.
    pub(super) const fn shares_capacity(self) -> bool {
        !self.is_consumed()
    }
}

/// Whose lanes are taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// Everybody's.
    All,
    /// One tenant's.
    Tenant(TenantId),
    /// These subscriptions', whoever owns them.
    Only(Arc<[SubscriptionId]>),
}

/// Who takes jobs, and from which lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taker {
    /// From which classes.
    pub classes: &'static [Class],
    /// Whose.
    pub whose: Whose,
}

impl Taker {
    /// The worker in this process, which sends everything that goes over HTTP.
    pub const EMBEDDED: Self = Self {
        classes: &[Class::Webhook, Class::Certified],
        whose: Whose::All,
    };

    /// Whether it sends webhooks.
    pub(in crate::pipeline) fn relays(&self) -> bool {
        self.classes.contains(&Class::Webhook)
    }
}

/// Which lanes some open stream takes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::pipeline) struct Served {
    classes: [Reach; Class::COUNT],
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Reach {
    all: bool,
    tenants: HashSet<TenantId>,
    only: HashSet<SubscriptionId>,
}

impl Served {
    /// What these serve together.
    pub(in crate::pipeline) fn by<'a>(takers: impl Iterator<Item = &'a Taker>) -> Self {
        let mut served = Self::default();
        for taker in takers {
            for class in taker.classes {
                let reach = &mut served.classes[class.index()];
                match &taker.whose {
                    Whose::All => reach.all = true,
                    Whose::Tenant(tenant) => {
                        reach.tenants.insert(*tenant);
                    }
                    Whose::Only(ids) => reach.only.extend(ids.iter()),
                }
            }
        }
        served
    }

    /// Whether somebody takes that subscription's deliveries.
    pub(in crate::pipeline) fn reaches(&self, target: &Target) -> bool {
        let s = &target.subscription;
        let reach = &self.classes[Class::of(target).index()];
        reach.all || reach.tenants.contains(&s.tenant) || reach.only.contains(&s.id)
    }
}
