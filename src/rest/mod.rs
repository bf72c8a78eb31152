//! REST, made from the protos' annotations: a call is turned into the gRPC
//! call that it stands for, and the answer back. There is no second schema.
//!
//! In the order in which a call passes: [`routes`] finds the method,
//! [`request`] and [`json`] build its message, [`transcode`] makes the call
//! and the answer, [`problem`] the refusal. [`hot`] is the short way for
//! what is called most, [`cloudevent`] another form of it, [`openapi`] the description of it all, [`docs`]
//! its page.

pub mod annotations;
pub mod cloudevent;
pub mod docs;
pub mod hot;
pub mod json;
pub mod openapi;
pub mod percent;
pub mod problem;
pub mod request;
pub mod routes;
pub mod schema;
pub mod transcode;

#[cfg(test)]
mod tests;

use routes::Routes;
use schema::{Schema, SchemaError};

/// The id of a call. The front server puts it into the request's extensions;
/// every answer has it as `X-Request-Id`, every problem as `request_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(pub String);

/// What REST knows of the protos.
#[derive(Debug)]
pub struct Rest {
    /// The messages.
    pub schema: Schema,
    /// The routes.
    pub routes: Routes,
}

impl Rest {
    /// Reads the server's own descriptors.
    ///
    /// # Errors
    /// Where an annotation can't be served; says which.
    pub fn new() -> Result<Self, SchemaError> {
        let schema = Schema::new(crate::proto::DESCRIPTORS)?;
        let routes = Routes::new(&schema)?;
        Ok(Self { schema, routes })
    }
}
