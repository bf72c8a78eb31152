//! `EventTypeService`.

use tonic::{Request, Response};

use super::{
    Answer, Context, caller,
    change::Changes,
    check::Faults,
    convert::timestamp,
    mask::{self, Fixed},
    page,
};
use crate::{
    caller::Caller,
    directory::Registered,
    domain::{
        event::{TYPE_TAKES, is_type},
        event_type::{EventType, Schema},
        id::{EventTypeId, Micros, TenantId, wall_clock},
    },
    error::{Error, Reason, Result, Violation},
    pipeline::publish::unavailable,
    proto::v1::{
        self, CreateEventTypeRequest, CreateEventTypeResponse, DeleteEventTypeRequest,
        DeleteEventTypeResponse, GetEventTypeRequest, GetEventTypeResponse, ListEventTypesRequest,
        ListEventTypesResponse, UpdateEventTypeRequest, UpdateEventTypeResponse,
        event_type_service_server::EventTypeService,
    },
    store::{self, StoreError},
};

/// The most event types of a tenant.
const QUOTA: i64 = 1000;

/// What can be changed of an event type.
const CHANGEABLE: [&str; 2] = ["description", "schema"];

/// Registers event types.
pub struct EventTypes(pub Context);

/// Refuses a payload that does not fit its type's schema.
///
/// # Errors
/// `SCHEMA_MISMATCH` that names each place that does not fit.
pub(super) fn check(registered: &Registered, payload: &[u8]) -> Result<()> {
    let Some(schema) = &registered.schema else {
        return Ok(());
    };
    let faults = schema.faults(payload);
    if faults.is_empty() {
        return Ok(());
    }
    let violations = faults.into_iter().map(|f| Violation {
        field: format!("data{}", f.path),
        message: f.message,
    });
    let mut error = Error::fields(violations.collect());
    error.reason = Reason::SchemaMismatch;
    Err(error)
}

/// A schema that can be checked against, as it was written; none for no text and
/// for `null`.
fn schema(given: &[u8], faults: &mut Faults) -> Option<String> {
    let Ok(text) = std::str::from_utf8(given) else {
        faults.add("schema", "must be JSON in UTF-8");
        return None;
    };
    let text = text.trim_ascii();
    if matches!(text, "" | "null") {
        return None;
    }
    if let Err(wrong) = Schema::parse(text) {
        faults.add(format!("schema{}", wrong.path), wrong.message);
    }
    Some(text.to_owned())
}

fn not_found(name: &str) -> Error {
    let name: String = name.chars().take(128).collect();
    Error::not_found(format_args!("event type {name:?}"))
}

#[tonic::async_trait]
impl Changes for EventTypes {
    type Id = EventTypeId;
    type Row = EventType;

    async fn load(&self, caller: &Caller, id: EventTypeId) -> Result<EventType> {
        let found = self.0.store.event_type_by_id(id).await;
        found
            .map_err(unavailable)?
            .filter(|t| caller.sees(t.tenant))
            .ok_or_else(|| Error::not_found("such event type"))
    }

    async fn write(&self, row: &EventType, updated_at: Micros) -> store::Result<()> {
        self.0.store.update_event_type(row, updated_at).await
    }

    fn updated_at(row: &mut EventType) -> &mut Micros {
        &mut row.updated_at
    }

    async fn written(&self) {
        self.0.catch_up().await;
    }
}

impl EventTypes {
    fn view(&self, t: &EventType) -> v1::EventType {
        v1::EventType {
            tenant: self.0.directory.tenant_name(t.tenant),
            name: t.name.clone(),
            description: t.description.clone(),
            schema: t.schema.clone().map(String::into_bytes),
            create_time: Some(timestamp(t.id.time())),
            update_time: Some(timestamp(t.updated_at)),
        }
    }

    async fn find(&self, tenant: TenantId, name: &str) -> Result<EventType> {
        if name.is_empty() {
            return Err(Error::field("name", "is required"));
        }
        // A name that is none is none of the store's, which may not be able to hold it.
        if !is_type(name) {
            return Err(not_found(name));
        }
        let found = self.0.store.get_event_type(tenant, name).await;
        found.map_err(unavailable)?.ok_or_else(|| not_found(name))
    }
}

#[tonic::async_trait]
impl EventTypeService for EventTypes {
    async fn create_event_type(
        &self,
        request: Request<CreateEventTypeRequest>,
    ) -> Answer<CreateEventTypeResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let tenant = self.0.tenant(&caller, &given.tenant).await?;
        let mut faults = Faults::default();
        if !is_type(&given.name) {
            faults.add("name", TYPE_TAKES);
        }
        let description = faults.text("description", &given.description, 500, true);
        let schema = schema(given.schema.as_deref().unwrap_or_default(), &mut faults);
        faults.done()?;
        let now = wall_clock();
        let new = EventType {
            id: EventTypeId::new(now, tenant.id.part()),
            tenant: tenant.id,
            name: given.name,
            description,
            schema,
            updated_at: now,
        };
        let made = self.0.store.create_event_type(&new, QUOTA).await;
        made.map_err(|e| match e {
            StoreError::Exists(_) => Error::new(
                Reason::AlreadyExists,
                format!("there is an event type {} already", new.name),
            ),
            StoreError::Quota(n) => Error::new(
                Reason::QuotaExceeded,
                format!("the tenant has {n} event types, which is its quota"),
            ),
            e => unavailable(e),
        })?;
        self.0.catch_up().await;
        Ok(Response::new(CreateEventTypeResponse {
            event_type: Some(self.view(&new)),
        }))
    }

    async fn get_event_type(
        &self,
        request: Request<GetEventTypeRequest>,
    ) -> Answer<GetEventTypeResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let tenant = self.0.tenant(&caller, &given.tenant).await?;
        let found = self.find(tenant.id, &given.name).await?;
        Ok(Response::new(GetEventTypeResponse {
            event_type: Some(self.view(&found)),
        }))
    }

    async fn list_event_types(
        &self,
        request: Request<ListEventTypesRequest>,
    ) -> Answer<ListEventTypesResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let page = page::read::<EventTypeId>(given.page_size, &given.page_token)?;
        let tenant = self.0.tenant(&caller, &given.tenant).await?;
        let rows = self.0.store.list_event_types(tenant.id, page).await;
        let mut rows = rows.map_err(unavailable)?;
        let next_page_token = page::cut(&page, &mut rows, |t| t.id);
        Ok(Response::new(ListEventTypesResponse {
            event_types: rows.iter().map(|t| self.view(t)).collect(),
            next_page_token,
        }))
    }

    async fn update_event_type(
        &self,
        request: Request<UpdateEventTypeRequest>,
    ) -> Answer<UpdateEventTypeResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let tenant = self.0.tenant(&caller, &given.tenant).await?;
        let Some(wanted) = given.event_type else {
            return Err(Error::field("event_type", "is required").into());
        };
        let found = self.find(tenant.id, &given.name).await?;
        let (_, new) = self
            .change(&caller, found.id, |t, _| {
                let mut faults = Faults::under("event_type.");
                let shown = self.view(t);
                let fixed = [
                    Fixed::new("tenant", &wanted.tenant, &shown.tenant),
                    Fixed::new("name", &wanted.name, &shown.name),
                    Fixed::new("create_time", &wanted.create_time, &shown.create_time),
                    Fixed::new("update_time", &wanted.update_time, &shown.update_time),
                ];
                let set = |name: &str| match name {
                    "description" => !wanted.description.is_empty(),
                    _ => wanted.schema.is_some(),
                };
                let mask = given.update_mask.as_ref();
                for name in mask::changed(mask, &CHANGEABLE, set, &fixed, &mut faults) {
                    if name == "description" {
                        t.description = faults.text(name, &wanted.description, 500, true);
                    } else {
                        let given = wanted.schema.as_deref().unwrap_or_default();
                        t.schema = schema(given, &mut faults);
                    }
                }
                faults.done()
            })
            .await?;
        Ok(Response::new(UpdateEventTypeResponse {
            event_type: Some(self.view(&new)),
        }))
    }

    async fn delete_event_type(
        &self,
        request: Request<DeleteEventTypeRequest>,
    ) -> Answer<DeleteEventTypeResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner();
        let tenant = self.0.tenant(&caller, &given.tenant).await?;
        let found = self.find(tenant.id, &given.name).await?;
        let there = self.0.store.delete_event_type(found.id).await;
        if !there.map_err(unavailable)? {
            return Err(not_found(&given.name).into());
        }
        self.0.catch_up().await;
        Ok(Response::new(DeleteEventTypeResponse {}))
    }
}
