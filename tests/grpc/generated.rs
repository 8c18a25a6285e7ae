//! The code and the descriptors beside `orders.proto` are what the generators make of it.
//!
//! After a change: `UPDATE_GRPC=1 cargo test --all-features --test grpc generated`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message;
use prost_types::FileDescriptorSet;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/grpc")
}

/// As `protoc` of grpcio-tools describes the service. `tests/run` installs it.
fn described(target: &Path) -> FileDescriptorSet {
    let python = env::var("GRPCIO_PYTHON").expect("tests/run installs grpcio and names it");
    let described = target.join("descriptors");
    let protoc = Command::new(python)
        .args(["-m", "grpc_tools.protoc", "--include_source_info", "--proto_path"])
        .arg(folder())
        .arg(format!("--descriptor_set_out={}", described.display()))
        .arg("orders.proto")
        .output()
        .unwrap();
    assert!(protoc.status.success(), "{}", String::from_utf8_lossy(&protoc.stderr));
    FileDescriptorSet::decode(&*fs::read(described).unwrap()).unwrap()
}

/// Asserts that the file is as `generated`, or writes it so.
fn is_as_generated(file: &str, generated: &[u8]) {
    let file = folder().join(file);
    if env::var_os("UPDATE_GRPC").is_some() {
        fs::write(&file, generated).unwrap();
    }
    let advice = "is not what the generator makes: UPDATE_GRPC=1 cargo test --all-features \
                  --test grpc generated";
    assert!(fs::read(&file).unwrap() == generated, "{} {advice}", file.display());
}

#[test]
fn code_and_descriptors_are_made_from_the_proto_file() {
    let target = tempfile::tempdir().unwrap();
    let mut descriptors = described(target.path());
    let generator = tonic_prost_build::configure().out_dir(target.path());
    generator.compile_fds(descriptors.clone()).unwrap();
    is_as_generated("demo.v1.rs", &fs::read(target.path().join("demo.v1.rs")).unwrap());

    // Reflection needs no comments.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    is_as_generated("demo.v1.bin", &descriptors.encode_to_vec());
}
