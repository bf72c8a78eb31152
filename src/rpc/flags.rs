//! `FlagService`: switches.

use std::time::Duration;

use http::Method;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Response};

use super::{
    Answer, Context, caller,
    check::{Faults, echo},
    convert::{known, timestamp},
    page,
};
use crate::{
    caller::Caller,
    domain::{
        audit::Record,
        switch::{Change, Stored, Switch},
    },
    error::{Error, Reason, Result},
    pipeline::publish::unavailable,
    proto::v1::{
        self, GetSwitchesRequest, GetSwitchesResponse, LiftStopRequest, LiftStopResponse,
        ListSwitchChangesRequest, ListSwitchChangesResponse, NodeConfirmation, SetSwitchRequest,
        SetSwitchResponse, StopAllRequest, StopAllResponse, SwitchChange,
        flag_service_server::FlagService,
    },
    rest::{
        Rest,
        routes::{self, Found},
    },
    store::{Author, Changed, LiveNode, StoreError},
};

/// How long an answer waits for the nodes.
const CONFIRMED: Duration = Duration::from_secs(1);
/// The longest pause between two looks at what they have confirmed.
const LOOK: Duration = Duration::from_millis(40);
/// The service whose methods can't be switched off: it switches them on.
const ITSELF: &str = "onering.v1.FlagService/";

/// Reads and sets switches.
pub struct Flags(pub Context);

/// Switches are every tenant's.
fn operator<T>(request: &Request<T>) -> Result<Caller> {
    let caller = caller(request)?;
    if caller.key().tenant.is_some() {
        return Err(Error::new(
            Reason::TenantMismatch,
            "the key is bound to a tenant, and switches hold for all of them",
        ));
    }
    Ok(caller)
}

/// A switch's name as it is stored: of one of the four, of a method, of the method
/// that a route stands for, or of a route that stands for none.
fn resolve(rest: &Rest, text: &str) -> std::result::Result<String, String> {
    if let Some(switch) = Switch::find(text) {
        return Ok(switch.name().to_owned());
    }
    if let Some(plain) = routes::PLAIN.into_iter().find(|p| *p == text) {
        return Ok(plain.to_owned());
    }
    let rpc =
        match text.split_once(' ') {
            None => {
                let name = text.strip_prefix('/').unwrap_or(text);
                let mut methods = rest.routes.methods();
                methods.find(|m| m.rpc == name).map(|m| m.rpc.clone())
            }
            Some((method, path)) => method.parse::<Method>().ok().and_then(|method| {
                match rest.routes.find(&method, path) {
                    Found::Route(route, _) => Some(route.access.rpc.clone()),
                    _ => None,
                }
            }),
        };
    match rpc {
        Some(rpc) if rpc.starts_with(ITSELF) => Err(format!(
            "{rpc} can't be switched off: it is what switches are set with"
        )),
        Some(rpc) => Ok(rpc),
        None => {
            let four = Switch::ALL.map(Switch::name).join(", ");
            Err(format!(
                "takes {four}, a method such as onering.v1.EventService/PublishEvent, or a route such as `POST /v1/external/events` or `GET /docs`"
            ))
        }
    }
}

impl Flags {
    fn name(&self, text: &str, faults: &mut Faults) -> String {
        resolve(&self.0.rest, text).unwrap_or_else(|why| {
            faults.add("name", why);
            echo(text)
        })
    }

    /// What the environment of a live node pins can't be changed: it would hold
    /// for some nodes and not for others.
    async fn check_pins(&self, name: &str) -> Result<()> {
        let Some(switch) = Switch::find(name) else {
            return Ok(());
        };
        let here = self.0.live.load().pins.of(switch).is_some();
        let node = if here {
            Some(self.0.node.name().to_owned())
        } else {
            let nodes = self.0.store.nodes().await.map_err(unavailable)?;
            let pinned = |n: &LiveNode| n.pins.split(',').any(|p| p == name);
            nodes.into_iter().find(pinned).map(|n| n.name)
        };
        match node {
            None => Ok(()),
            Some(node) => Err(Error::new(
                Reason::FailedPrecondition,
                format!(
                    "{name} is pinned by {} in the environment of the node {node}: change it there, or unset it and restart the node",
                    switch.variable()
                ),
            )),
        }
    }

    async fn change(
        &self,
        caller: &Caller,
        names: &[&str],
        change: Change,
        reason: &str,
    ) -> Result<(Changed, Vec<NodeConfirmation>)> {
        let actor = caller.key().id.to_string();
        let by = Author {
            actor: &actor,
            reason,
        };
        let changed = self
            .0
            .store
            .change_switches(names, change, by, self.0.keyring.audit())
            .await
            .map_err(|e| match e {
                StoreError::Conflict => Error::new(
                    Reason::FailedPrecondition,
                    format!("{} is not stopped", names.join(", ")),
                ),
                e => unavailable(e),
            })?;
        // Also a note of the log's end that does not lie in the database.
        tracing::warn!(
            switch.names = names.join(","), switch.change = ?change, key.id = actor,
            audit.sequence = changed.sequence, audit.hash = hex::encode(changed.hash),
            "switches changed"
        );
        self.0.catch_up().await;
        let nodes = self.confirmations(changed.revision).await;
        Ok((changed, nodes))
    }

    /// Every live node, and whether it has that revision in force: as soon as all
    /// have, and at the latest after [`CONFIRMED`].
    async fn confirmations(&self, revision: i64) -> Vec<NodeConfirmation> {
        let end = Instant::now() + CONFIRMED;
        let mut pause = Duration::from_millis(2);
        let mut seen = Vec::new();
        while let Ok(looked) = timeout_at(end, self.0.store.nodes()).await {
            match looked {
                Ok(nodes) => seen = nodes,
                Err(e) => tracing::debug!(error.message = %e, "confirmations not read"),
            }
            let all = !seen.is_empty() && seen.iter().all(|n| n.revision >= revision);
            if all || Instant::now() + pause >= end {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK);
        }
        let confirmation = |n: LiveNode| NodeConfirmation {
            node: n.name,
            confirmed: n.revision >= revision,
        };
        seen.into_iter().map(confirmation).collect()
    }

    fn view(&self, stored: &Stored) -> v1::Switch {
        let pins = self.0.live.load().pins;
        let switch = Switch::find(&stored.name);
        let pin = switch.and_then(|s| pins.of(s));
        v1::Switch {
            name: stored.name.clone(),
            enabled: stored.in_force(pin),
            stored: stored.enabled,
            pinned_by: switch
                .filter(|_| pin.is_some())
                .map(|s| s.variable().to_owned())
                .unwrap_or_default(),
            stopped: stored.stopped,
            update_time: known(stored.updated_at),
            updated_by: stored.updated_by.clone(),
            reason: stored.reason.clone(),
        }
    }
}

/// Why, for the audit log.
fn reason(text: &str, faults: &mut Faults) -> String {
    let text = text.trim();
    if text.is_empty() {
        faults.add(
            "reason",
            "is required: 1 to 500 characters for the audit log",
        );
    }
    faults.text("reason", text, 500, false)
}

fn shown(record: Record) -> SwitchChange {
    let Record { seq, entry, .. } = record;
    SwitchChange {
        sequence: seq,
        time: Some(timestamp(entry.at)),
        actor: entry.actor,
        action: entry.action,
        name: entry.target,
        old_value: entry.old,
        new_value: entry.new,
        reason: entry.reason,
    }
}

#[tonic::async_trait]
impl FlagService for Flags {
    async fn get_switches(
        &self,
        request: Request<GetSwitchesRequest>,
    ) -> Answer<GetSwitchesResponse> {
        operator(&request)?;
        let (mut stored, revision) = self.0.directory.stored_switches();
        let mut switches: Vec<Stored> = Switch::ALL
            .iter()
            .map(|s| {
                let known = stored.remove(s.name());
                known.unwrap_or_else(|| Stored::untouched(s.name()))
            })
            .collect();
        let mut methods: Vec<Stored> = stored.into_values().collect();
        methods.sort_unstable();
        switches.append(&mut methods);
        Ok(Response::new(GetSwitchesResponse {
            switches: switches.iter().map(|s| self.view(s)).collect(),
            revision,
            node: self.0.node.name().to_owned(),
        }))
    }

    async fn set_switch(&self, request: Request<SetSwitchRequest>) -> Answer<SetSwitchResponse> {
        let caller = operator(&request)?;
        let given = request.into_inner();
        let mut faults = Faults::default();
        let name = self.name(&given.name, &mut faults);
        if given.enabled.is_none() {
            faults.add("enabled", "is required: true or false");
        }
        let reason = reason(&given.reason, &mut faults);
        faults.done()?;
        self.check_pins(&name).await?;
        let change = Change::Set(given.enabled == Some(true));
        let (changed, nodes) = self.change(&caller, &[&name], change, &reason).await?;
        Ok(Response::new(SetSwitchResponse {
            switch: changed.switches.first().map(|s| self.view(s)),
            revision: changed.revision,
            nodes,
        }))
    }

    async fn stop_all(&self, request: Request<StopAllRequest>) -> Answer<StopAllResponse> {
        let caller = operator(&request)?;
        let mut faults = Faults::default();
        let reason = reason(&request.get_ref().reason, &mut faults);
        faults.done()?;
        let names = Switch::STOPPABLE.map(Switch::name);
        let (changed, nodes) = self.change(&caller, &names, Change::Stop, &reason).await?;
        Ok(Response::new(StopAllResponse {
            switches: changed.switches.iter().map(|s| self.view(s)).collect(),
            revision: changed.revision,
            nodes,
        }))
    }

    async fn lift_stop(&self, request: Request<LiftStopRequest>) -> Answer<LiftStopResponse> {
        let caller = operator(&request)?;
        let given = request.into_inner();
        let mut faults = Faults::default();
        let name = self.name(&given.name, &mut faults);
        let reason = reason(&given.reason, &mut faults);
        faults.done()?;
        let (changed, nodes) = self
            .change(&caller, &[&name], Change::Lift, &reason)
            .await?;
        Ok(Response::new(LiftStopResponse {
            switch: changed.switches.first().map(|s| self.view(s)),
            revision: changed.revision,
            nodes,
        }))
    }

    async fn list_switch_changes(
        &self,
        request: Request<ListSwitchChangesRequest>,
    ) -> Answer<ListSwitchChangesResponse> {
        operator(&request)?;
        let given = request.into_inner();
        let page = page::read::<i64>(given.page_size, &given.page_token)?;
        let mut faults = Faults::default();
        let name = (!given.name.is_empty()).then(|| self.name(&given.name, &mut faults));
        faults.done()?;
        let mut records = self
            .0
            .store
            .audit("switch.", name.as_deref(), page)
            .await
            .map_err(unavailable)?;
        let next_page_token = page::cut(&page, &mut records, |r| r.seq);
        Ok(Response::new(ListSwitchChangesResponse {
            changes: records.into_iter().map(shown).collect(),
            next_page_token,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // X5: any method by its name or its route; the service itself never.
    #[test]
    fn names() {
        let rest = Rest::new().unwrap();
        for (text, name) in [
            ("webhooks.enabled", "webhooks.enabled"),
            (
                "onering.v1.EventService/PublishEvent",
                "onering.v1.EventService/PublishEvent",
            ),
            (
                "/onering.v1.EventService/PublishEvent",
                "onering.v1.EventService/PublishEvent",
            ),
            (
                "POST /v1/external/events",
                "onering.v1.EventService/PublishEvent",
            ),
            (
                "GET /v1/external/webhooks/{id}",
                "onering.v1.SubscriptionService/GetSubscription",
            ),
            (
                "onering.v1.MetricsService/WatchMetrics",
                "onering.v1.MetricsService/WatchMetrics",
            ),
            ("GET /docs", "GET /docs"),
        ] {
            assert_eq!(resolve(&rest, text).as_deref(), Ok(name));
        }
        for wrong in [
            "",
            "webhooks",
            "onering.v1.EventService",
            "EventService/PublishEvent",
            "PUT /v1/external/events",
            "POST /v1/external/nothing",
            "POST /health",
            "GET /health",
            "POST /docs",
            "grpc.health.v1.Health/Check",
        ] {
            assert!(resolve(&rest, wrong).unwrap_err().starts_with("takes "));
        }
        for itself in [
            "onering.v1.FlagService/SetSwitch",
            "GET /v1/admin/switches",
            "POST /v1/admin/switches/lift-stop",
        ] {
            let why = resolve(&rest, itself).unwrap_err();
            assert!(why.contains("can't be switched off"), "{why}");
        }
    }
}
