//! `EventService`.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::join_all;
use tonic::{Request, Response, metadata::MetadataValue};

use super::{
    Answer, Context, caller,
    check::{self, Faults},
    convert::timestamp,
    event_types, trace,
};
use crate::{
    caller::Caller,
    domain::{
        event::{TYPE_TAKES, data_of, is_type},
        id::EventId,
        trace::Trace,
    },
    error::{Error, Result},
    pipeline::publish::{NewEvent, unavailable},
    proto::v1::{
        Event, GetEventRequest, GetEventResponse, PublishEventError, PublishEventRequest,
        PublishEventResponse, PublishEventResult, PublishEventsRequest, PublishEventsResponse,
        event_service_server::EventService, publish_event_result,
    },
};

mod payload;

/// The most events of a batch.
const BATCH: usize = 1000;
/// Says that an answer is that of an earlier time.
pub const REPLAYED: &str = "idempotent-replayed";

/// Takes events.
pub struct Events(pub Context);

/// Publishes an event; whether the answer is that of an earlier time.
///
/// # Errors
/// Why it is refused.
pub async fn publish(
    context: &Context,
    caller: &Caller,
    given: PublishEventRequest,
    trace: Option<Arc<Trace>>,
) -> Result<(PublishEventResponse, bool)> {
    let mut faults = Faults::default();
    if !is_type(&given.event_type) {
        faults.add("event_type", TYPE_TAKES);
    }
    let key = given.idempotency_key;
    if key.len() > 255 || !key.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        faults.add(
            "idempotency_key",
            "has at most 255 printable ASCII characters",
        );
    }
    let ordering_key = faults.text("ordering_key", &given.ordering_key, 128, false);
    let data = payload::text(given.payload, &mut faults);
    faults.done()?;
    let tenant = context.tenant(caller, &given.tenant).await?;
    let most = context.live.load().event_max_bytes;
    let event_type = given.event_type;
    // Small payloads cost little to compare, and one that is too large is refused.
    let registered = context.directory.event_type(tenant.id, &event_type);
    if let Some(registered) = registered.filter(|_| data.len() <= most) {
        event_types::check(&registered, &data)?;
    }
    let receipt = context
        .publisher
        .publish(NewEvent {
            tenant: tenant.id,
            key: Some(caller.key().id),
            event_type: event_type.clone(),
            data,
            idempotency_key: Some(key).filter(|k| !k.is_empty()),
            ordering_key: Some(ordering_key).filter(|k| !k.is_empty()).map(Into::into),
            only: None,
            trace,
        })
        .await?;
    let response = PublishEventResponse {
        id: receipt.id.to_string(),
        event_type,
        create_time: Some(timestamp(receipt.time)),
        delivery_count: receipt.deliveries,
    };
    Ok((response, receipt.repeated))
}

fn result(outcome: Result<(PublishEventResponse, bool)>) -> PublishEventResult {
    let result = match outcome {
        Ok((accepted, _)) => publish_event_result::Result::Accepted(accepted),
        Err(e) => publish_event_result::Result::Error(PublishEventError {
            reason: e.code().to_owned(),
            message: e.detail,
        }),
    };
    PublishEventResult {
        result: Some(result),
    }
}

/// Events with their places in a batch. Those with one ordering key are a chain, to
/// be published one after another: one that has to be matched again would else be
/// overtaken by those behind it.
fn chains(events: Vec<PublishEventRequest>) -> Vec<Vec<(usize, PublishEventRequest)>> {
    let mut chains: Vec<Vec<_>> = Vec::with_capacity(events.len());
    let mut of_key: HashMap<(String, String), usize> = HashMap::new();
    for (at, event) in events.into_iter().enumerate() {
        let mut chain = chains.len();
        if !event.ordering_key.is_empty() {
            let key = (event.tenant.clone(), event.ordering_key.clone());
            chain = *of_key.entry(key).or_insert(chain);
        }
        if chain == chains.len() {
            chains.push(Vec::new());
        }
        chains[chain].push((at, event));
    }
    chains
}

#[tonic::async_trait]
impl EventService for Events {
    async fn publish_event(
        &self,
        request: Request<PublishEventRequest>,
    ) -> Answer<PublishEventResponse> {
        let caller = caller(&request)?;
        let trace = trace::of_call(&request);
        let (answer, repeated) = publish(&self.0, &caller, request.into_inner(), trace).await?;
        let mut response = Response::new(answer);
        if repeated {
            let replayed = MetadataValue::from_static("true");
            response.metadata_mut().insert(REPLAYED, replayed);
        }
        Ok(response)
    }

    async fn publish_events(
        &self,
        request: Request<PublishEventsRequest>,
    ) -> Answer<PublishEventsResponse> {
        let caller = caller(&request)?;
        let trace = trace::of_call(&request);
        let events = request.into_inner().events;
        if !(1..=BATCH).contains(&events.len()) {
            return Err(Error::field("events", format!("has 1 to {BATCH} entries")).into());
        }
        let chains = chains(events).into_iter().map(async |chain| {
            let mut results = Vec::with_capacity(chain.len());
            for (at, event) in chain {
                let published = publish(&self.0, &caller, event, trace.clone()).await;
                results.push((at, result(published)));
            }
            results
        });
        let mut results: Vec<_> = join_all(chains).await.into_iter().flatten().collect();
        results.sort_unstable_by_key(|(at, _)| *at);
        let results = results.into_iter().map(|(_, result)| result).collect();
        Ok(Response::new(PublishEventsResponse { results }))
    }

    async fn get_event(&self, request: Request<GetEventRequest>) -> Answer<GetEventResponse> {
        let caller = caller(&request)?;
        let id: EventId = check::id("id", &request.get_ref().id)?;
        let found = self.0.store.get_event(id).await.map_err(unavailable)?;
        let event = found
            .filter(|e| caller.sees(e.tenant))
            .ok_or_else(|| Error::not_found(format_args!("event {id}")))?;
        Ok(Response::new(GetEventResponse {
            event: Some(Event {
                id: id.to_string(),
                tenant: self.0.directory.tenant_name(event.tenant),
                event_type: event.event_type,
                create_time: Some(timestamp(id.time())),
                data_json: event.body.slice_ref(data_of(&event.body)),
            }),
        }))
    }
}
