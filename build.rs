//! Compiles `proto/` with a compiler written in Rust, so that a build needs
//! nothing but cargo, and keeps the descriptors: reflection, the REST shim and
//! the OpenAPI document are made from them at run time.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTOS: [&str; 12] = [
    "onering/v1/dead_letter.proto",
    "onering/v1/delivery.proto",
    "onering/v1/error_reason.proto",
    "onering/v1/event.proto",
    "onering/v1/event_type.proto",
    "onering/v1/flag.proto",
    "onering/v1/key.proto",
    "onering/v1/metrics.proto",
    "onering/v1/options.proto",
    "onering/v1/subscription.proto",
    "onering/v1/tenant.proto",
    "onering/v1/worker.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=src/store/postgres/migrations");
    println!("cargo:rerun-if-changed=src/store/sqlite/migrations");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(PROTOS)?;
    // Encoded by protox itself: prost's own descriptor types drop extensions,
    // and `google.api.http` with them.
    let descriptors = compiler.encode_file_descriptor_set();
    fs::write(out.join("onering.binpb"), &descriptors)?;

    tonic_prost_build::configure()
        .build_transport(true)
        .bytes(".onering.v1.PublishEventRequest.data_json")
        .bytes(".onering.v1.Event.data_json")
        .bytes(".onering.v1.ServerMessage.Delivery.body")
        .compile_well_known_types(false)
        .compile_fds(prost_types::FileDescriptorSet::decode(
            descriptors.as_slice(),
        )?)?;
    Ok(())
}
