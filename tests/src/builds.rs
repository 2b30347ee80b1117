//! Builds as the command line and as other clients ask for them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use ampoule_client::types::BuildEvent;
use serde_json::Value;
use tempfile::TempDir;

use crate::archive::Archive;
use crate::http::{Answer, Streaming};
use crate::{Service, ampoule_program};

/// What stands between the parts of our forms.
const BOUNDARY: &str = "between-the-parts";
/// The type of our forms.
pub const FORM_TYPE: &str = "multipart/form-data; boundary=between-the-parts";

/// A folder with these files.
///
/// # Panics
/// When it cannot be written.
pub fn folder_of(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("it lies in the folder")).expect("it is ours");
        fs::write(path, text).expect("it is ours");
    }
    folder
}

/// A tar with these files.
pub fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let add = |archive: Archive, (name, text): &(&str, &str)| archive.file(name, 0o644, 0, text.as_bytes());
    files.iter().fold(Archive::default(), add).finish()
}

/// The program as a client of a service.
pub fn client(service: &Service, arguments: &[&str]) -> Command {
    let mut program = Command::new(ampoule_program());
    program.args(["--host", &format!("unix://{}", service.socket().display())]).args(arguments);
    program
}

/// Builds a folder.
///
/// # Panics
/// When the program cannot be run.
pub fn build_folder(service: &Service, folder: &Path, flags: &[&str]) -> Output {
    client(service, &["build"]).args(flags).arg(folder).output().expect("the program can be run")
}

/// Builds a folder with these files.
pub fn build(service: &Service, files: &[(&str, &str)], flags: &[&str]) -> Output {
    build_folder(service, folder_of(files).path(), flags)
}

/// What a program wrote to its standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that a program did what it should.
///
/// # Panics
/// When it did not.
#[track_caller]
pub fn check_built(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, said(output));
}

/// A form with these parts.
pub fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in parts {
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(content);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    bytes
}

/// Asks for a build and follows it.
///
/// # Panics
/// When no answer comes.
pub fn follow(service: &Service, request: &Value, tar: &[u8]) -> Streaming {
    let body = form(&[("request", request.to_string().as_bytes()), ("context", tar)]);
    let headers = [("content-type", FORM_TYPE)];
    service.connect().stream_body("POST", "/v1/builds", &headers, &body).expect("it answers")
}

/// Asks for a build with this form, whatever the answer.
pub fn send(service: &Service, parts: &[(&str, &[u8])]) -> Answer {
    service.send("POST", "/v1/builds", &[("content-type", FORM_TYPE)], &form(parts))
}

/// The events of a build.
///
/// # Panics
/// When one cannot be read.
pub fn events(text: &str) -> Vec<BuildEvent> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"))).collect()
}
