//! From a request to what is executed: defaults, files, the policies' question, their answer, and the checks after it.
//! Everything here is a function of its arguments; what a policy changed is checked again like a request.

use std::collections::BTreeMap;

use ampoule_client::types::{ArtifactsRequest, JobFile, JobRequest, LimitsRequest, SpecFile, Writable};
use ampoule_engine::image::store::Image;
use ampoule_engine::spec::{Artifacts, WritablePath};
use ampoule_plugins::{Admission, AdmissionFile, AdmissionImage, AdmissionLimits, AdmissionWritable, RequestedLimits};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::job::{EGRESS, NO_NETWORK, Spec};
use crate::limits;
use crate::problem::{ABOVE_CEILING, Refused};

/// The folder that files and artifacts with relative paths are in, and how much it holds.
const WORK: &str = "/work";
const WORK_BYTES: u64 = 256 * 1024 * 1024;
/// What every job can write to, and how much it holds.
const TMP: &str = "/tmp";
const TMP_BYTES: u64 = 64 * 1024 * 1024;
/// Files, folders and links in a writable path that does not say.
const INODES: u64 = 16_384;
const FILES_MAX: usize = 4096;
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 128;
const GLOBS_MAX: usize = 64;
const RETRIES_MAX: u32 = 10;
const KEY_BYTES_MAX: usize = 255;
const MIB: u64 = 1024 * 1024;
/// What artifacts may take when the request does not say, and at most: of a file, together, and their number.
const ARTIFACT_BYTES: (u64, u64) = (64 * MIB, 1024 * MIB);
const ARTIFACTS_BYTES: (u64, u64) = (256 * MIB, 4096 * MIB);
const ARTIFACTS: (u64, u64) = (1000, 10_000);

/// A file with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Its content.
    pub content: Bytes,
}

/// A request with all defaults, before the policies.
#[derive(Clone, Debug)]
pub struct Wish {
    /// What the policies are asked.
    pub admission: Admission,
    /// How much artifacts may take.
    pub artifacts: Artifacts,
    /// Standard input.
    pub stdin: Bytes,
    /// The files that came in the request.
    pub files: Vec<File>,
}

/// Lays the request over the image and the service's defaults.
///
/// # Errors
/// The first field that cannot be used.
pub fn wish(request: &JobRequest, image: &Image, defaults: &AdmissionLimits, token: &str) -> Result<Wish, Refused> {
    check_words(request)?;
    let cwd = cwd(request, image);
    let files = files(&request.files, &cwd)?;
    let stdin = one_of("stdin", request.stdin.as_deref(), request.stdin_base64.as_deref())?;
    let artifacts = artifacts(request.artifacts.as_ref(), &cwd)?;
    let requested_limits = requested_limits(&request.limits)?;
    let admission = Admission {
        image: AdmissionImage {
            reference: image.reference.clone().unwrap_or_else(|| image.digest.clone()),
            digest: image.digest.clone(),
            size_bytes: image.size_bytes,
        },
        argv: argv(request, image)?,
        env: env(request, image),
        user: request.user.clone().or_else(|| image.config.user.clone()).unwrap_or_else(|| "0:0".to_owned()),
        limits: limits::lay_over(&requested_limits, defaults),
        requested_limits,
        network: request.network.clone().unwrap_or_else(|| NO_NETWORK.to_owned()),
        writable: writable(&request.writable, &cwd),
        artifacts: artifacts.globs.clone(),
        files: files
            .iter()
            .map(|file| AdmissionFile { path: file.path.clone(), size_bytes: file.content.len() as u64 })
            .collect(),
        stdin_bytes: stdin.len() as u64,
        labels: request.labels.clone().into_iter().collect(),
        priority: request.priority.unwrap_or(0),
        token: token.to_owned(),
        cwd,
    };
    Ok(Wish { admission, artifacts, stdin, files })
}

/// Makes the spec of what the policies let in.
///
/// # Errors
/// A field that a policy left so that it cannot be launched, or a limit above its ceiling.
pub fn settle(
    admission: &Admission,
    artifacts: Artifacts,
    image: &Image,
    ceiling: &AdmissionLimits,
    has_upload: bool,
    grants_network: bool,
) -> Result<Spec, Refused> {
    check_ceilings(&admission.limits, ceiling)?;
    if admission.network != NO_NETWORK && !grants_network {
        let detail = format!("`{}` is not available to jobs on this service", admission.network);
        let hint = "send what the job needs with `files`, or have `network.jobs` of the service's configuration set";
        return Err(Refused::field("network", detail).hint(hint));
    }
    if !(-100..=100).contains(&admission.priority) {
        return Err(Refused::field("priority", format!("{} is not between -100 and 100", admission.priority)));
    }
    let path = |writable: &AdmissionWritable| WritablePath {
        path: writable.path.clone(),
        size_bytes: writable.size_bytes,
        inodes: writable.inodes,
    };
    let spec = Spec {
        image_digest: image.digest.clone(),
        layers: image.layers.clone(),
        argv: admission.argv.clone(),
        env: admission.env.clone(),
        cwd: admission.cwd.clone(),
        user: admission.user.clone(),
        limits: admission.limits.clone(),
        network: admission.network.clone(),
        writable: admission.writable.iter().map(path).collect(),
        artifacts,
        files: admission
            .files
            .iter()
            .map(|file| SpecFile { path: file.path.clone(), size_bytes: file.size_bytes })
            .collect(),
        has_files: has_upload || !admission.files.is_empty(),
        stdin_bytes: admission.stdin_bytes,
    };
    check_places(&spec)?;
    spec.sandbox("job".to_owned(), None).check().map_err(|error| Refused::field(error.field, error.to_string()))?;
    Ok(spec)
}

fn check_ceilings(limits: &AdmissionLimits, ceiling: &AdmissionLimits) -> Result<(), Refused> {
    limits::check(limits, ceiling).map_err(|above| {
        let mut refused = Refused::new(ABOVE_CEILING, above.to_string())
            .hint("ask for less, or have [limits.ceiling] of the service's configuration raised");
        refused.problem.field = Some(above.field.to_owned());
        refused
    })
}

/// Files go into writable paths and artifacts come out of them; anything else would fail only when it is too late.
fn check_places(spec: &Spec) -> Result<(), Refused> {
    let is_writable = |path: &str| spec.writable.iter().any(|place| is_below(path, &place.path));
    let hint = "name a path below a writable one, or add it to `writable`";
    if let Some(file) = spec.files.iter().find(|file| !is_writable(&file.path)) {
        let detail = format!("`{}` is not in a writable path", file.path);
        return Err(Refused::field("files.path", detail).hint(hint));
    }
    Ok(())
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
}

/// Checks what is only counted and compared.
fn check_words(request: &JobRequest) -> Result<(), Refused> {
    if let Some(network) = request.network.as_deref().filter(|network| ![NO_NETWORK, EGRESS].contains(network)) {
        let detail = format!("`{network}` is no network of a job: there is `{NO_NETWORK}`, which is loopback alone");
        let hint = format!("leave `network` out, or say `{EGRESS}` where the job needs the world");
        return Err(Refused::field("network", detail).hint(hint));
    }
    let name_bytes = request.name.as_ref().map_or(0, String::len);
    let key_bytes = request.idempotency_key.as_ref().map_or(0, String::len);
    let long_label =
        |(name, value): (&String, &String)| name.is_empty() || name.len().max(value.len()) > LABEL_BYTES_MAX;
    let checks = [
        ("name", name_bytes > NAME_BYTES_MAX, format!("a name of {name_bytes} bytes, at most {NAME_BYTES_MAX}")),
        ("labels", request.labels.len() > LABELS_MAX, format!("{} labels, at most {LABELS_MAX}", request.labels.len())),
        (
            "labels",
            request.labels.iter().any(long_label),
            format!("names have 1 to {LABEL_BYTES_MAX} bytes, values at most as many"),
        ),
        ("retries", request.retries.unwrap_or(0) > RETRIES_MAX, format!("at most {RETRIES_MAX}")),
        ("idempotency_key", key_bytes > KEY_BYTES_MAX, format!("a key of {key_bytes} bytes, at most {KEY_BYTES_MAX}")),
        ("idempotency_key", request.idempotency_key.as_deref() == Some(""), "a key is not empty".to_owned()),
        (
            "files",
            request.files.len() > FILES_MAX,
            format!("{} files, at most {FILES_MAX}; send more as a tar", request.files.len()),
        ),
        (
            "files_upload",
            request.files_upload.is_some() && !request.files.is_empty(),
            "either `files` or `files_upload`".to_owned(),
        ),
        ("shell", request.shell.is_some() && !request.argv.is_empty(), "either `argv` or `shell`".to_owned()),
    ];
    match checks.into_iter().find(|(_, is_wrong, _)| *is_wrong) {
        Some((field, _, problem)) => Err(Refused::field(field, format!("{field}: {problem}"))),
        None => Ok(()),
    }
}

fn argv(request: &JobRequest, image: &Image) -> Result<Vec<String>, Refused> {
    if let Some(line) = &request.shell {
        return Ok(["/bin/sh", "-c", line].map(str::to_owned).to_vec());
    }
    if !request.argv.is_empty() {
        return Ok(request.argv.clone());
    }
    let own = [image.config.entrypoint.clone(), image.config.cmd.clone()].concat();
    if own.is_empty() {
        let refused = Refused::field("argv", "there is no command: neither the request nor the image names one");
        return Err(refused.hint("add `argv`, as in [\"echo\", \"hello\"], or `shell`"));
    }
    Ok(own)
}

/// The image's variables in their order, then those of the request by name; a later one replaces an earlier.
fn env(request: &JobRequest, image: &Image) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::with_capacity(image.config.env.len() + request.env.len() + 1);
    let wanted = request.env.iter().map(|(name, value)| (name.clone(), value.clone()));
    for (name, value) in image.config.env.iter().cloned().chain(wanted) {
        match env.iter_mut().find(|(other, _)| *other == name) {
            Some(place) => place.1 = value,
            None => env.push((name, value)),
        }
    }
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".to_owned(), ampoule_engine::spec::DEFAULT_PATH.to_owned()));
    }
    env
}

fn cwd(request: &JobRequest, image: &Image) -> String {
    let is_relative = |path: &String| !path.starts_with('/');
    let needs_work = request.files_upload.is_some()
        || request.files.iter().any(|file| is_relative(&file.path))
        || request.artifacts.as_ref().is_some_and(|artifacts| artifacts.globs.iter().any(is_relative));
    let own = image.config.working_dir.clone().filter(|folder| !folder.is_empty());
    match &request.cwd {
        Some(cwd) => cwd.clone(),
        None if needs_work => WORK.to_owned(),
        None => own.unwrap_or_else(|| "/".to_owned()),
    }
}

fn writable(wanted: &[Writable], cwd: &str) -> Vec<AdmissionWritable> {
    let mut all: Vec<AdmissionWritable> = wanted
        .iter()
        .map(|place| AdmissionWritable {
            path: place.path.clone(),
            size_bytes: place.size_bytes,
            inodes: place.inodes.unwrap_or(INODES),
        })
        .collect();
    let mut add = |path: &str, size_bytes| {
        if !all.iter().any(|place| place.path == path) {
            all.push(AdmissionWritable { path: path.to_owned(), size_bytes, inodes: INODES });
        }
    };
    add(TMP, TMP_BYTES);
    if cwd == WORK || is_below(cwd, WORK) {
        add(WORK, WORK_BYTES);
    }
    all
}

fn absolute(path: &str, cwd: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", cwd.trim_end_matches('/')) }
}

fn files(wanted: &[JobFile], cwd: &str) -> Result<Vec<File>, Refused> {
    let mut all = BTreeMap::new();
    for file in wanted {
        let is_plain = file
            .path
            .split('/')
            .skip(usize::from(file.path.starts_with('/')))
            .all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
        if !is_plain || file.path.len() > ampoule_engine::spec::PATH_BYTES_MAX {
            let detail = format!("`{}` is not the path of a file without `.`, `..` and empty parts", file.path);
            return Err(Refused::field("files.path", detail));
        }
        let mode = mode(file)?;
        let content = one_of("files.content", file.content.as_deref(), file.content_base64.as_deref())?;
        let path = absolute(&file.path, cwd);
        if all.insert(path.clone(), File { path, mode, content }).is_some() {
            return Err(Refused::field("files.path", format!("`{}` is named twice", file.path)));
        }
    }
    Ok(all.into_values().collect())
}

fn mode(file: &JobFile) -> Result<u32, Refused> {
    let Some(text) = &file.mode else { return Ok(0o644) };
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| Refused::field("files.mode", format!("`{text}` is not octal permission bits, as in `0755`")))
}

/// Takes bytes that are given as text or in base64.
fn one_of(field: &'static str, text: Option<&str>, base64: Option<&str>) -> Result<Bytes, Refused> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(Refused::field(field, format!("either `{field}` or `{field}_base64`"))),
        (Some(text), None) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        (None, Some(base64)) => match STANDARD.decode(base64) {
            Ok(bytes) => Ok(bytes.into()),
            Err(cause) => {
                Err(Refused::field(format!("{field}_base64"), format!("{field}_base64 is no base64: {cause}")))
            }
        },
        (None, None) => Ok(Bytes::new()),
    }
}

fn artifacts(wanted: Option<&ArtifactsRequest>, cwd: &str) -> Result<Artifacts, Refused> {
    let Some(wanted) = wanted else { return Ok(Artifacts::default()) };
    let bounded = |field: &'static str, value: Option<u64>, (default, max): (u64, u64)| match value {
        Some(value) if value > max => Err(Refused::field(field, format!("{field} is {value}, at most {max}"))),
        value => Ok(value.unwrap_or(default)),
    };
    if wanted.globs.len() > GLOBS_MAX {
        return Err(Refused::field("artifacts.globs", format!("{} patterns, at most {GLOBS_MAX}", wanted.globs.len())));
    }
    let globs: Vec<String> = wanted.globs.iter().map(|glob| absolute(glob, cwd)).collect();
    ampoule_engine::sandbox::artifacts::compile(&globs)
        .map_err(|cause| Refused::field("artifacts.globs", format!("a pattern cannot be used: {cause}")))?;
    Ok(Artifacts {
        globs,
        file_bytes_max: bounded("artifacts.file_bytes_max", wanted.file_bytes_max, ARTIFACT_BYTES)?,
        total_bytes_max: bounded("artifacts.total_bytes_max", wanted.total_bytes_max, ARTIFACTS_BYTES)?,
        files_max: bounded("artifacts.files_max", wanted.files_max, ARTIFACTS)?,
    })
}

fn requested_limits(wanted: &LimitsRequest) -> Result<RequestedLimits, Refused> {
    Ok(RequestedLimits {
        memory_bytes: wanted.memory_bytes,
        cpu_milli: wanted.cpus.map(cpu_milli).transpose()?,
        pids: wanted.pids,
        cpu_time_ms: wanted.cpu_time_ms,
        wall_time_ms: wanted.wall_time_ms,
        open_files: wanted.open_files,
        file_bytes: wanted.file_bytes,
        output_bytes: wanted.output_bytes,
        output_total_bytes: wanted.output_total_bytes,
    })
}

fn cpu_milli(cpus: f64) -> Result<u32, Refused> {
    let milli = (cpus * 1000.0).round();
    if !(1.0..=1e9).contains(&milli) {
        return Err(Refused::field("limits.cpus", format!("{cpus} is not a number of processors")));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range above")]
    Ok(milli as u32)
}
