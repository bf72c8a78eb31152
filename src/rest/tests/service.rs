//! A service that answers with what it was asked, so that tests see it.

use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::{
    error::{Error, Reason, Violation},
    proto::v1::{
        event_service_server::{EventService, EventServiceServer},
        key_service_server::{KeyService, KeyServiceServer},
        publish_event_request::Payload,
        *,
    },
};

type Answer<T> = Result<Response<T>, Status>;

#[derive(Debug, Clone, Copy)]
struct Echo;

pub(super) fn routes() -> tonic::service::Routes {
    tonic::service::Routes::new(EventServiceServer::new(Echo))
        .add_service(KeyServiceServer::new(Echo))
}

pub(super) fn time(seconds: i64, nanos: i32) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos })
}

fn text(metadata: &MetadataMap, name: &str) -> String {
    let value = metadata.get(name).and_then(|v| v.to_str().ok());
    value.unwrap_or_default().to_owned()
}

#[tonic::async_trait]
impl EventService for Echo {
    async fn publish_event(
        &self,
        request: Request<PublishEventRequest>,
    ) -> Answer<PublishEventResponse> {
        let message = request.get_ref();
        if message.event_type == "limited" {
            let wait = std::time::Duration::from_millis(1500);
            let error = Error::new(Reason::RateLimited, "too many").retry_after(wait);
            let mut status = Status::from(error);
            status
                .metadata_mut()
                .insert("x-ratelimit-remaining", "0".parse().unwrap());
            return Err(status);
        }
        let mut response = Response::new(PublishEventResponse {
            id: message.idempotency_key.clone(),
            event_type: message.event_type.clone(),
            create_time: time(1_767_225_600, 5_000_000),
            delivery_count: 0,
        });
        response
            .metadata_mut()
            .insert("x-ratelimit-remaining", "9".parse().unwrap());
        Ok(response)
    }

    async fn publish_events(
        &self,
        request: Request<PublishEventsRequest>,
    ) -> Answer<PublishEventsResponse> {
        let results = request.into_inner().events.into_iter().map(|event| {
            let message = match event.payload {
                Some(Payload::DataJson(text)) => String::from_utf8(text.to_vec()).unwrap(),
                Some(Payload::Data(_)) => "typed".to_owned(),
                None => "none".to_owned(),
            };
            let error = PublishEventError {
                reason: event.event_type,
                message,
            };
            PublishEventResult {
                result: Some(publish_event_result::Result::Error(error)),
            }
        });
        Ok(Response::new(PublishEventsResponse {
            results: results.collect(),
        }))
    }

    async fn get_event(&self, request: Request<GetEventRequest>) -> Answer<GetEventResponse> {
        let id = request.into_inner().id;
        let data_json = match id.as_str() {
            "evt_none" => return Err(Error::not_found("event").into()),
            "evt_broken" => bytes::Bytes::from_static(b"{broken"),
            _ => bytes::Bytes::from_static(RAW.as_bytes()),
        };
        let event = Event {
            id,
            data_json,
            ..Event::default()
        };
        Ok(Response::new(GetEventResponse { event: Some(event) }))
    }
}

/// What only raw text can keep.
pub(super) const RAW: &str = r#"{ "z":1.10, "a":9007199254740993,"a":1e400,"é":"\u00e9" }"#;

#[tonic::async_trait]
impl KeyService for Echo {
    async fn create_key(&self, request: Request<CreateKeyRequest>) -> Answer<CreateKeyResponse> {
        let r = request.into_inner();
        let key = Key {
            name: r.name,
            tier: r.tier,
            scopes: r.scopes,
            canary_enabled: r.canary_enabled.or(r.canary).unwrap_or_default(),
            kind: r.kind,
            rate_limit_per_hour: r.rate_limit_per_hour,
            expire_time: r.expire_time,
            metadata: r.metadata,
            status: KeyStatus::Active.into(),
            ..Key::default()
        };
        Ok(Response::new(CreateKeyResponse {
            key_id: "key_1".into(),
            secret: "osk_1".into(),
            key: Some(key),
        }))
    }
    async fn get_key(&self, request: Request<GetKeyRequest>) -> Answer<GetKeyResponse> {
        let key = Key {
            key_id: request.into_inner().key_id,
            ..Key::default()
        };
        Ok(Response::new(GetKeyResponse { key: Some(key) }))
    }
    async fn list_keys(&self, request: Request<ListKeysRequest>) -> Answer<ListKeysResponse> {
        let r = request.into_inner();
        let next_page_token = format!("{}|{}|{}", r.tenant, r.page_size, r.page_token);
        Ok(Response::new(ListKeysResponse {
            keys: vec![],
            next_page_token,
        }))
    }
    async fn update_key(&self, request: Request<UpdateKeyRequest>) -> Answer<UpdateKeyResponse> {
        let r = request.into_inner();
        let mut key = r.key.unwrap_or_default();
        if key.tier == "gold" {
            let field = Violation {
                field: "key.tier".into(),
                message: "is not a tier".into(),
            };
            return Err(Error::fields(vec![field]).into());
        }
        key.key_id = r.key_id;
        key.name = r.update_mask.unwrap_or_default().paths.join("+");
        Ok(Response::new(UpdateKeyResponse { key: Some(key) }))
    }
    async fn disable_key(&self, request: Request<DisableKeyRequest>) -> Answer<DisableKeyResponse> {
        let key = Key {
            key_id: request.into_inner().key_id,
            ..Key::default()
        };
        Ok(Response::new(DisableKeyResponse { key: Some(key) }))
    }
    async fn enable_key(&self, _: Request<EnableKeyRequest>) -> Answer<EnableKeyResponse> {
        Ok(Response::new(EnableKeyResponse { key: None }))
    }
    async fn verify_key(&self, request: Request<VerifyKeyRequest>) -> Answer<VerifyKeyResponse> {
        Ok(Response::new(VerifyKeyResponse {
            detail: request.into_inner().key,
            ..VerifyKeyResponse::default()
        }))
    }
    async fn rotate_key(&self, request: Request<RotateKeyRequest>) -> Answer<RotateKeyResponse> {
        let r = request.into_inner();
        let key = Key {
            rate_limit_per_hour: r.overlap_seconds,
            ..Key::default()
        };
        Ok(Response::new(RotateKeyResponse {
            key_id: r.key_id,
            secret: String::new(),
            key: Some(key),
        }))
    }
    async fn revoke_key(&self, _: Request<RevokeKeyRequest>) -> Answer<RevokeKeyResponse> {
        Err(Error::internal("on purpose").into())
    }
    async fn delete_key(&self, _: Request<DeleteKeyRequest>) -> Answer<DeleteKeyResponse> {
        Ok(Response::new(DeleteKeyResponse {}))
    }
    /// What came as metadata.
    async fn get_caller(&self, request: Request<GetCallerRequest>) -> Answer<GetCallerResponse> {
        let metadata = request.metadata();
        if metadata.get("authorization").is_none() {
            return Err(Error::new(Reason::KeyMissing, "no key").into());
        }
        let id = request
            .extensions()
            .get::<crate::rest::RequestId>()
            .map(|id| id.0.clone());
        Ok(Response::new(GetCallerResponse {
            key_id: text(metadata, "authorization"),
            tenant: text(metadata, "traceparent"),
            name: id.unwrap_or_default(),
            tier: text(metadata, "grpc-timeout"),
            ..GetCallerResponse::default()
        }))
    }
}
