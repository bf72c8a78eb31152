//! The gRPC services. A call comes here authenticated and with its scope
//! checked; what is left is which tenant it acts on, whether what it asks for
//! makes sense, and doing it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tonic::{Request, Response, Status, service::Routes};
use tonic_health::pb::health_server::{Health, HealthServer};

use self::gate::Gate;
use crate::{
    caller::Caller,
    connector::Connector,
    directory::Directory,
    domain::tenant::Tenant,
    error::{Error, Reason, Result},
    limiter::Limiter,
    monitor::Monitor,
    pipeline::{dispatch::Dispatcher, node::Node, publish::Publisher, sender::Sender},
    proto::v1::{
        dead_letter_service_server::DeadLetterServiceServer,
        delivery_service_server::DeliveryServiceServer, event_service_server::EventServiceServer,
        event_type_service_server::EventTypeServiceServer, flag_service_server::FlagServiceServer,
        key_service_server::KeyServiceServer, metrics_service_server::MetricsServiceServer,
        subscription_service_server::SubscriptionServiceServer,
        tenant_service_server::TenantServiceServer, worker_service_server::WorkerServiceServer,
    },
    rest::Rest,
    seal::Keyring,
    settings::Live,
    store::Store,
    usage::Usage,
};

mod change;
mod check;
mod convert;
pub mod dead_letters;
pub mod deliveries;
pub mod event_types;
pub mod events;
pub mod flags;
pub mod gate;
pub mod keys;
mod mask;
pub mod metrics;
mod page;
pub mod subscriptions;
pub mod tenants;
pub mod trace;
pub mod workers;

/// The largest request: the largest payload or batch, and room for what is
/// around it.
pub const MAX_MESSAGE: usize = (4 << 20) + (256 << 10);

type Answer<T> = std::result::Result<Response<T>, Status>;

/// What every service shares.
#[derive(Clone)]
pub struct Context {
    /// What is stored.
    pub store: Arc<dyn Store>,
    /// The configuration in memory.
    pub directory: Arc<Directory>,
    /// What secrets are hashed and sealed with.
    pub keyring: Arc<Keyring>,
    /// The live settings.
    pub live: Arc<ArcSwap<Live>>,
    /// Decides whether a key's limit admits a call.
    pub limiter: Arc<Limiter>,
    /// Counts keys' calls.
    pub usage: Arc<Usage>,
    /// Decides on calls.
    pub gate: Arc<Gate>,
    /// Reads what is counted of deliveries.
    pub monitor: Arc<Monitor>,
    /// Takes events.
    pub publisher: Arc<Publisher>,
    /// Knows where deliveries may go.
    pub connector: Connector,
    /// Sends what is not a delivery.
    pub sender: Arc<Sender>,
    /// Decides what is sent next.
    pub dispatcher: Arc<Dispatcher>,
    /// The workers that are connected.
    pub workers: Arc<workers::Roster>,
    /// The other nodes.
    pub peers: Arc<workers::Peers>,
    /// This node, as the others see it.
    pub node: Arc<Node>,
    /// The routes, by which methods are named.
    pub rest: Arc<Rest>,
}

/// The services of ours, to which health and reflection can be added.
pub fn services(context: &Context) -> Routes {
    let keys = KeyServiceServer::new(keys::Keys(context.clone()));
    let tenants = TenantServiceServer::new(tenants::Tenants(context.clone()));
    let subscriptions =
        SubscriptionServiceServer::new(subscriptions::Subscriptions(context.clone()));
    let event_types = EventTypeServiceServer::new(event_types::EventTypes(context.clone()));
    let events = EventServiceServer::new(events::Events(context.clone()));
    let deliveries = DeliveryServiceServer::new(deliveries::Deliveries(context.clone()));
    let letters = DeadLetterServiceServer::new(dead_letters::DeadLetters(context.clone()));
    let flags = FlagServiceServer::new(flags::Flags(context.clone()));
    let metrics = MetricsServiceServer::new(metrics::Metrics(context.clone()));
    let workers = WorkerServiceServer::new(workers::Workers(context.clone()));
    Routes::new(keys.max_decoding_message_size(MAX_MESSAGE))
        .add_service(tenants.max_decoding_message_size(MAX_MESSAGE))
        .add_service(subscriptions.max_decoding_message_size(MAX_MESSAGE))
        .add_service(event_types.max_decoding_message_size(MAX_MESSAGE))
        .add_service(events.max_decoding_message_size(MAX_MESSAGE))
        .add_service(deliveries.max_decoding_message_size(MAX_MESSAGE))
        .add_service(letters.max_decoding_message_size(MAX_MESSAGE))
        .add_service(flags.max_decoding_message_size(MAX_MESSAGE))
        .add_service(metrics.max_decoding_message_size(MAX_MESSAGE))
        .add_service(workers.max_decoding_message_size(workers::MAX_MESSAGE))
}

/// The services of ours, by their full names, for health.
pub const SERVICES: [&str; 10] = [
    "onering.v1.KeyService",
    "onering.v1.TenantService",
    "onering.v1.SubscriptionService",
    "onering.v1.EventTypeService",
    "onering.v1.EventService",
    "onering.v1.DeliveryService",
    "onering.v1.DeadLetterService",
    "onering.v1.FlagService",
    "onering.v1.MetricsService",
    "onering.v1.WorkerService",
];

/// Every gRPC service of this server: ours, `grpc.health.v1`, and reflection as
/// both versions of tools speak it.
///
/// # Errors
/// Where the descriptors can't be served.
pub fn routes<H: Health>(
    context: &Context,
    health: HealthServer<H>,
) -> std::result::Result<Routes, String> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let current = reflection().build_v1().map_err(|e| e.to_string())?;
    let alpha = reflection().build_v1alpha().map_err(|e| e.to_string())?;
    Ok(services(context)
        .add_service(health)
        .add_service(current)
        .add_service(alpha)
        .prepare())
}

impl Context {
    /// The tenant that a call acts on; as [`Caller::tenant`], but a tenant that
    /// another node has just made is found too.
    async fn tenant(&self, caller: &Caller, named: &str) -> Result<Arc<Tenant>> {
        match caller.tenant(&self.directory, named) {
            Err(e) if e.reason == Reason::NotFound => {
                self.catch_up().await;
                caller.tenant(&self.directory, named)
            }
            other => other,
        }
    }

    /// Brings this node to what is stored, before a change is answered. The
    /// change is committed: where this fails the poll does it later.
    async fn catch_up(&self) {
        if let Err(e) = self.directory.refresh().await {
            tracing::debug!(error.message = %e, "configuration not renewed after a change");
        }
    }
}

/// Who calls, as the gate found.
fn caller<T>(request: &Request<T>) -> Result<Caller> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| Error::internal("a call came past the gate"))
}
