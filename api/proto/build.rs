//! Generates the protocol's Rust code from `proto/` without protoc (protox is pure Rust).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors =
        protox::compile(["fairlead/v1/fleet.proto", "fairlead/v1/item.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
