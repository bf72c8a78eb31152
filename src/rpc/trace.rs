//! Where a call came from: its trace context and its id.

use std::sync::Arc;

use http::{Extensions, HeaderMap};
use tonic::Request;

use crate::{
    domain::trace::{self, Context, TRACEPARENT, TRACESTATE, Trace},
    rest::RequestId,
};

/// What a call's headers and the front server say. A context that is none is
/// ignored, as the standard has it; so are two.
#[must_use]
pub fn read(headers: &HeaderMap, extensions: &Extensions) -> Option<Arc<Trace>> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let parent = parents.next().filter(|_| parents.next().is_none());
    let context = parent.and_then(|v| Context::parse(v.to_str().ok()?));
    let states = headers.get_all(TRACESTATE).iter();
    // One that is not text is no member.
    let state = trace::state(states.map(|v| v.to_str().unwrap_or("?")));
    let request_id = extensions.get::<RequestId>().map(|id| id.0.clone());
    let trace = Trace {
        context,
        state: if context.is_some() {
            state
        } else {
            String::new()
        },
        request_id: request_id.unwrap_or_default(),
    };
    (trace != Trace::default()).then(|| Arc::new(trace))
}

/// With the context that a CloudEvent carries as an attribute, where the call has
/// none of its own: the call is nearer.
#[must_use]
pub fn or_attribute(
    trace: Option<Arc<Trace>>,
    context: Option<Context>,
    state: String,
) -> Option<Arc<Trace>> {
    if context.is_none() || trace.as_ref().is_some_and(|t| t.context.is_some()) {
        return trace;
    }
    let request_id = trace.map_or_else(String::new, |t| t.request_id.clone());
    Some(Arc::new(Trace {
        context,
        state,
        request_id,
    }))
}

/// What a gRPC call says, be it one that REST made.
pub(super) fn of_call<T>(request: &Request<T>) -> Option<Arc<Trace>> {
    read(request.metadata().as_ref(), request.extensions())
}
