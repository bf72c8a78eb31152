//! The protos' generated code, and their descriptors.

#![allow(missing_docs, clippy::pedantic, clippy::all)]

/// `onering.v1`.
pub mod v1 {
    tonic::include_proto!("onering.v1");
}

/// `google.api`, as far as our protos use it.
pub mod google {
    pub mod api {
        tonic::include_proto!("google.api");
    }
}

/// Every proto file with its imports, comments and options, as an encoded
/// `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/onering.binpb"));
