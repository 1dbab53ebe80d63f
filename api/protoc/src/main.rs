//! The part of protoc's command line that build scripts of dependencies use, by protox.
//!
//! `etcd-client` compiles its protos when it is built and wants `protoc` for that; with this nobody has to
//! install one. Started by the script `protoc` beside this crate. Never part of what ships.

use std::{env, fs, path::PathBuf, process::ExitCode};

/// What prost-build asks for.
#[derive(Default)]
struct Asked {
    includes: Vec<PathBuf>,
    files: Vec<PathBuf>,
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut asked = Asked::default();
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "-I" => asked.includes.extend(args.next().map(PathBuf::from)),
            "-o" => asked.out = args.next().map(PathBuf::from),
            "--version" => {
                println!("libprotoc 29.0 (protox)");
                return ExitCode::SUCCESS;
            }
            option if option.starts_with("--") => {}
            file => asked.files.push(file.into()),
        }
    }
    match compile(asked) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the descriptors of the files, with all that they include.
fn compile(asked: Asked) -> Result<(), String> {
    let out = asked.out.ok_or("no -o FILE is given")?;
    let mut compiler = protox::Compiler::new(asked.includes).map_err(|e| format!("{e:?}"))?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(asked.files).map_err(|e| format!("{e:?}"))?;
    let descriptors = compiler.encode_file_descriptor_set();
    fs::write(&out, descriptors).map_err(|e| format!("cannot write {}: {e}", out.display()))
}
