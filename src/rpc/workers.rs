//! `WorkerService`.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use self::{
    opening::Opening,
    roster::Ticket,
    session::{Beginning, Outbound},
};
use super::{Answer, Context, caller};
use crate::{
    caller::Caller,
    domain::key::Kind,
    error::{Error, Reason, Result},
    proto::v1::{
        ServerMessage, WorkerMessage, worker_message::Message, worker_service_server::WorkerService,
    },
};

mod hear;
mod held;
mod lease;
mod link;
mod links;
mod opening;
mod pace;
mod peers;
mod queue;
mod roster;
mod session;

pub use peers::Peers;
pub use roster::Roster;

/// The one method.
const PATH: &str = "/onering.v1.WorkerService/StreamDeliveries";
/// How long a worker has to send its first message.
const FIRST: Duration = Duration::from_secs(10);
/// Messages that the connection has taken and not sent.
const TAKEN: usize = 16;
/// The largest message of a worker's: an ack of 1,000 with what receivers answered.
pub(super) const MAX_MESSAGE: usize = 8 << 20;

/// Hands out deliveries.
pub struct Workers(pub Context);

#[tonic::async_trait]
impl WorkerService for Workers {
    type StreamDeliveriesStream = BoxStream<'static, std::result::Result<ServerMessage, Status>>;

    async fn stream_deliveries(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Answer<Self::StreamDeliveriesStream> {
        let caller = caller(&request)?;
        let context = self.0.clone();
        if context.monitor.stopping().is_cancelled() {
            return Err(
                Error::new(Reason::StoreUnavailable, "the server is stopping")
                    .retry_after(Duration::from_secs(1))
                    .into(),
            );
        }
        let consumer = match caller.key().kind {
            Kind::Consumer => caller.key().tenant,
            Kind::Admin => None,
        };
        let ticket = context.workers.enter(consumer, caller.is_through_node())?;
        let (outbound, messages) = mpsc::channel(TAKEN);
        tokio::spawn(serve(
            context,
            caller,
            request.into_inner(),
            outbound,
            ticket,
        ));
        // Answered at once: many clients wait for this before they send.
        let messages = stream::unfold(messages, |mut messages| async move {
            let next = messages.recv().await?;
            Some((next, messages))
        });
        Ok(Response::new(messages.boxed()))
    }
}

async fn serve(
    context: Context,
    caller: Caller,
    mut inbound: Streaming<WorkerMessage>,
    outbound: Outbound,
    _ticket: Ticket,
) {
    let opening = match open(&context, &caller, &mut inbound).await {
        Ok(opening) => opening,
        Err(e) => {
            // It may have gone.
            let _ = outbound.send(Err(e.into())).await;
            return;
        }
    };
    let roster: Arc<Roster> = context.workers.clone();
    let seated = match roster.sit(&opening.holder, opening.epoch).await {
        Ok(seated) => seated,
        Err(e) => {
            let _ = outbound.send(Err(e.into())).await;
            return;
        }
    };
    let beginning = Beginning {
        context,
        roster,
        caller,
        opening,
        seated,
    };
    session::serve(beginning, inbound, outbound).await;
}

async fn open(
    context: &Context,
    caller: &Caller,
    inbound: &mut Streaming<WorkerMessage>,
) -> Result<Opening> {
    let first = tokio::time::timeout(FIRST, inbound.message()).await;
    let message = match first {
        Ok(Ok(message)) => message.and_then(|m| m.message),
        Ok(Err(status)) => {
            let why = format!("not a message: {}", status.message());
            return Err(Error::new(Reason::InvalidArgument, why));
        }
        Err(_) => None,
    };
    match message {
        Some(Message::Open(open)) => Opening::read(context, caller, open).await,
        _ => Err(Error::field("open", "comes first, within 10 seconds")),
    }
}
