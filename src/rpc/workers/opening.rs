//! What a stream's first message asks for, checked.

use std::time::Duration;

use super::lease::Holder;
use crate::{
    caller::Caller,
    domain::{
        id::{SubscriptionId, TenantId},
        key::Kind,
    },
    error::{Error, Reason, Result},
    pipeline::{Class, Taker, Whose},
    proto::v1::{
        SubscriptionKind,
        worker_message::{Credit, Filter, Lease, Open},
    },
    rpc::{Context, check::Faults},
};

/// The most deliveries that a worker can have at once.
pub(super) const MOST_MESSAGES: i32 = 4096;
/// The most bytes of bodies that a worker can have at once.
pub(super) const MOST_BYTES: i64 = 64 << 20;
/// How long a worker has for a delivery where it does not say.
const LEASE: i32 = 60;
/// The longest.
pub(super) const LONGEST_LEASE: i32 = 3600;
/// The most subscriptions that a filter names.
const MOST_NAMED: usize = 1000;

/// How much a worker has at once at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// A stream that may begin.
pub(super) struct Opening {
    pub(super) holder: Holder,
    pub(super) epoch: i64,
    pub(super) taker: Taker,
    pub(super) window: Window,
    pub(super) lease: Duration,
    pub(super) resume: Vec<Lease>,
    /// As it was said, but for what is resumed.
    pub(super) open: Open,
}

/// A window, checked.
pub(super) fn window(messages: i32, bytes: i64, names: [&str; 2], faults: &mut Faults) -> Window {
    if !(0..=MOST_MESSAGES).contains(&messages) {
        faults.add(names[0], format!("takes 0 to {MOST_MESSAGES}"));
    }
    if !(0..=MOST_BYTES).contains(&bytes) {
        faults.add(names[1], format!("takes 0 to {MOST_BYTES}"));
    }
    let bytes = if bytes == 0 { MOST_BYTES } else { bytes };
    Window {
        messages: usize::try_from(messages).unwrap_or_default(),
        bytes: usize::try_from(bytes).unwrap_or_default(),
    }
}

/// The window of a `credit`, and the most deliveries that the worker has at once,
/// of other nodes too.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub(super) fn credit(caller: &Caller, credit: Credit) -> Result<(Window, usize)> {
    let mut faults = Faults::under("credit.");
    let window = window(
        credit.messages,
        credit.bytes,
        ["messages", "bytes"],
        &mut faults,
    );
    faults.done()?;
    let whole = if caller.is_through_node() {
        let most = credit.whole_messages.clamp(0, MOST_MESSAGES);
        usize::try_from(most).unwrap_or_default()
    } else {
        0
    };
    Ok((window, whole.max(window.messages)))
}

impl Opening {
    /// Checks an `open`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, `NOT_FOUND`, `TENANT_MISMATCH`, `SCOPE_MISSING`.
    pub(super) async fn read(context: &Context, caller: &Caller, open: Open) -> Result<Self> {
        let mut open = open;
        let resume = std::mem::take(&mut open.resume);
        let mut faults = Faults::under("open.");
        let named = (1..=128).contains(&open.worker_id.len())
            && open.worker_id.bytes().all(|b| b.is_ascii_graphic());
        if !named {
            faults.add("worker_id", "takes 1 to 128 printable ASCII characters");
        }
        if open.instance_epoch < 0 {
            faults.add("instance_epoch", "takes 0 or more");
        }
        let window = window(
            open.max_messages,
            open.max_bytes,
            ["max_messages", "max_bytes"],
            &mut faults,
        );
        let lease = faults.number("lease_seconds", open.lease_seconds, 1, LONGEST_LEASE, LEASE);
        if resume.len() > MOST_MESSAGES as usize {
            faults.add("resume", format!("has at most {MOST_MESSAGES} entries"));
        }
        let filter = open.filter.clone().unwrap_or_default();
        let ids = ids(&filter, &mut faults);
        let classes = classes(&filter, !ids.is_empty(), caller, &mut faults);
        faults.done()?;
        let whose = whose(context, caller, &filter, ids).await?;
        Ok(Self {
            holder: Holder {
                key: caller.key().id,
                worker: open.worker_id.clone(),
            },
            epoch: open.instance_epoch,
            taker: Taker { classes, whose },
            window,
            lease: Duration::from_secs(lease.unsigned_abs().into()),
            resume,
            open,
        })
    }
}

/// From which lanes a worker takes. What lives for a while only is taken by who
/// names it.
fn classes(filter: &Filter, named: bool, caller: &Caller, faults: &mut Faults) -> &'static [Class] {
    let (mut webhooks, mut streams) = (false, filter.kinds.is_empty());
    for kind in &filter.kinds {
        match SubscriptionKind::try_from(*kind) {
            Ok(SubscriptionKind::Webhook) => webhooks = true,
            Ok(SubscriptionKind::Stream) => streams = true,
            Ok(SubscriptionKind::Unspecified) | Err(_) => {
                faults.add("filter.kinds", "takes WEBHOOK and STREAM");
            }
        }
    }
    if webhooks && caller.key().kind == Kind::Consumer {
        faults.refuse(Error::new(
            Reason::ScopeMissing,
            "to relay webhooks takes an admin key (sk_admin_…) with deliveries:work",
        ));
    }
    match (webhooks, streams, named) {
        (true, true, true) => &[Class::Webhook, Class::Stream, Class::Temporary],
        (true, true, false) => &[Class::Webhook, Class::Stream],
        (true, false, _) => &[Class::Webhook],
        (false, _, true) => &[Class::Stream, Class::Temporary],
        (false, _, false) => &[Class::Stream],
    }
}

fn ids(filter: &Filter, faults: &mut Faults) -> Vec<SubscriptionId> {
    let texts = &filter.subscription_ids;
    if texts.len() > MOST_NAMED {
        faults.add(
            "filter.subscription_ids",
            format!("has at most {MOST_NAMED} entries"),
        );
        return Vec::new();
    }
    let mut ids = Vec::with_capacity(texts.len());
    for (n, text) in texts.iter().enumerate() {
        match text.parse::<SubscriptionId>() {
            Ok(id) if ids.contains(&id) => {}
            Ok(id) => ids.push(id),
            Err(e) => faults.add(format!("filter.subscription_ids[{n}]"), e.to_string()),
        }
    }
    ids
}

/// Whose lanes a worker takes from: never more than its key lets it.
async fn whose(
    context: &Context,
    caller: &Caller,
    filter: &Filter,
    ids: Vec<SubscriptionId>,
) -> Result<Whose> {
    let tenant: Option<TenantId> = if filter.tenant.is_empty() {
        caller.key().tenant
    } else {
        Some(context.tenant(caller, &filter.tenant).await?.id)
    };
    if ids.is_empty() {
        return Ok(tenant.map_or(Whose::All, Whose::Tenant));
    }
    let known = |id| context.directory.target(id).is_some();
    if !ids.iter().all(|id| known(*id)) {
        // Made on another node just now.
        context.catch_up().await;
    }
    for id in &ids {
        let target = context.directory.target(*id);
        let own = target.is_some_and(|t| tenant.is_none_or(|own| own == t.subscription.tenant));
        if !own {
            return Err(Error::not_found(format_args!("subscription {id}")));
        }
    }
    Ok(Whose::Only(ids.into()))
}

/// An id that a request may have.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub(super) fn request_id(given: &str) -> Result<()> {
    if given.len() > 128 {
        return Err(Error::field("request_id", "has at most 128 characters"));
    }
    Ok(())
}
