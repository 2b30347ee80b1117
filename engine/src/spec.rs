//! What a launch needs, as plain data that is checked when it is made; and what comes back when it ended.
//! Nothing here knows the kernel, HTTP or policies.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

pub use mounts::{CacheFolder, FileOwner, LayersPart, MOUNTS_MAX, MountContent, SECRET_BYTES_MAX, StepMount};

mod mounts;

/// Most bytes that the arguments and the environment of a command may take together, each with its final NUL.
pub const COMMAND_BYTES_MAX: usize = 128 * 1024;
/// Most writable paths that a sandbox may have.
pub const WRITABLE_PATHS_MAX: usize = 32;
/// Most layers that a root may have: what one overlay mount takes.
pub const LAYERS_MAX: usize = 127;
/// Longest path in a spec, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Least memory that a sandbox can be given, in bytes: its own start needs some of it.
pub const MEMORY_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// Why a spec cannot be launched: the field as its user knows it, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecError {
    /// The field, as in `limits.memory_bytes`.
    pub field: &'static str,
    /// What is wrong, with the bound that was passed.
    pub problem: String,
}

fn refuse(field: &'static str, problem: impl Into<String>) -> Result<(), SpecError> {
    Err(SpecError { field, problem: problem.into() })
}

/// The name of an unpacked layer: the SHA-256 of its uncompressed tar (its diff id), as 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(String);

impl LayerId {
    /// Takes `sha256:HEX` or the bare 64 digits; anything else is an error, so that it can stand in a path.
    pub fn parse(text: &str) -> Result<LayerId, SpecError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_digest = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_digest {
            Ok(LayerId(hex.to_owned()))
        } else {
            Err(SpecError { field: "layer", problem: format!("`{text}` is not the hexadecimal SHA-256 of a layer") })
        }
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LayerId {
    type Error = SpecError;
    fn try_from(text: String) -> Result<LayerId, SpecError> {
        LayerId::parse(&text)
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> String {
        id.0
    }
}

/// A place that a job may write to: a tmpfs of its own, gone with the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WritablePath {
    /// Absolute path inside the sandbox.
    pub path: String,
    /// Most bytes it may hold; they count towards the memory limit as well.
    pub size_bytes: u64,
    /// Most files, folders and links it may hold.
    pub inodes: u64,
}

/// All of a sandbox that is settled before a command is known: sandboxes with equal frames can be made ahead.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// The layers of the read-only root, lowest first.
    pub layers: Vec<LayerId>,
    /// The writable paths besides `/dev/shm`.
    pub writable: Vec<WritablePath>,
    /// Whom the command runs as: `uid`, `uid:gid`, `name` or `name:group`, looked up in the image's own files.
    pub user: String,
    /// The host name inside.
    pub hostname: String,
    /// What it reaches.
    pub network: Network,
}

/// What a sandbox reaches over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Network {
    /// Itself: loopback alone.
    #[default]
    None,
    /// What the machine reaches, but neither the machine nor other sandboxes.
    Egress,
}

/// What is to be executed in a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program and its arguments; a program without a slash is searched in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited. `HOME` is added from the image's passwd file when absent.
    pub env: Vec<(String, String)>,
    /// Absolute working directory inside the sandbox.
    pub cwd: String,
    /// What is to be brought out of the writable paths at the end.
    pub artifacts: Artifacts,
}

/// Which files come out of a sandbox after the command ended, and how much of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifacts {
    /// Absolute glob patterns (`*`, `?`, `[…]`, `**`); none means that nothing is collected.
    pub globs: Vec<String>,
    /// Largest single file, in bytes; a larger one is left out and named.
    pub file_bytes_max: u64,
    /// Most bytes of all files together.
    pub total_bytes_max: u64,
    /// Most files.
    pub files_max: u64,
}

/// The bounds of a run. There is no way to leave one out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory with page cache and tmpfs, in bytes; swap is none.
    pub memory_bytes: u64,
    /// Processor share in thousandths of a processor.
    pub cpu_milli: u32,
    /// Most processes and threads at once, the sandbox's own pid 1 included.
    pub pids: u32,
    /// Processor time of all processes together, in milliseconds.
    pub cpu_time_ms: u64,
    /// Time from start to end, in milliseconds.
    pub wall_time_ms: u64,
    /// Open descriptors of one process (`RLIMIT_NOFILE`).
    pub open_files: u64,
    /// Largest file that may be written, in bytes (`RLIMIT_FSIZE`).
    pub file_bytes: u64,
}

/// Everything that one launch needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Names the sandbox in logs and errors; the job's id.
    pub id: String,
    /// What is settled before the command.
    pub frame: Frame,
    /// What is executed.
    pub command: Command,
    /// Its bounds.
    pub limits: Limits,
}

impl SandboxSpec {
    /// Checks everything that can be checked without the kernel.
    ///
    /// # Errors
    /// The first field that cannot be launched, with the bound that it passes.
    pub fn check(&self) -> Result<(), SpecError> {
        self.frame.check()?;
        self.command.check()?;
        self.limits.check()
    }
}

impl Frame {
    fn check(&self) -> Result<(), SpecError> {
        if self.layers.is_empty() || self.layers.len() > LAYERS_MAX {
            refuse("frame.layers", format!("{} layers, where 1 to {LAYERS_MAX} can be mounted", self.layers.len()))?;
        }
        if self.writable.len() > WRITABLE_PATHS_MAX {
            refuse("writable", format!("{} writable paths, at most {WRITABLE_PATHS_MAX}", self.writable.len()))?;
        }
        for (index, writable) in self.writable.iter().enumerate() {
            check_path("writable.path", &writable.path)?;
            let top = writable.path.trim_start_matches('/').split('/').next().unwrap_or("");
            if matches!(top, "" | "proc" | "sys" | "dev") {
                refuse("writable.path", format!("`{}` cannot be writable", writable.path))?;
            }
            if writable.size_bytes == 0 || writable.inodes == 0 {
                refuse("writable", format!("`{}` has no room: size and inodes must be above 0", writable.path))?;
            }
            if self.writable[..index].iter().any(|other| other.path == writable.path) {
                refuse("writable.path", format!("`{}` is named twice", writable.path))?;
            }
        }
        if self.hostname.is_empty() || self.hostname.len() > 64 || self.hostname.contains('\0') {
            refuse("hostname", "a host name has 1 to 64 bytes")?;
        }
        if self.user.is_empty() || self.user.len() > 256 || self.user.contains('\0') {
            refuse("user", "a user is `uid`, `uid:gid`, `name` or `name:group`")?;
        }
        Ok(())
    }
}

impl Command {
    fn check(&self) -> Result<(), SpecError> {
        if self.argv.first().is_none_or(String::is_empty) {
            refuse("argv", "there is no program to run")?;
        }
        if self.argv.iter().any(|argument| argument.contains('\0')) {
            refuse("argv", "an argument contains a NUL byte")?;
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                refuse(
                    "env",
                    format!("`{name}` is not a variable: a name has no `=`, and neither part has a NUL byte"),
                )?;
            }
        }
        let bytes = self.argv.iter().map(|argument| argument.len() + 1).sum::<usize>()
            + self.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>();
        if bytes > COMMAND_BYTES_MAX {
            refuse("argv", format!("arguments and environment take {bytes} bytes, at most {COMMAND_BYTES_MAX}"))?;
        }
        for glob in &self.artifacts.globs {
            check_path("artifacts", glob)?;
        }
        check_path("cwd", &self.cwd)
    }
}

impl Limits {
    fn check(&self) -> Result<(), SpecError> {
        if self.memory_bytes < MEMORY_BYTES_MIN {
            refuse("limits.memory_bytes", format!("{} bytes, at least {MEMORY_BYTES_MIN}", self.memory_bytes))?;
        }
        if self.cpu_milli < 10 {
            refuse("limits.cpus", "at least 0.01 processors")?;
        }
        if self.pids < 2 {
            refuse("limits.pids", "at least 2: the sandbox's own pid 1 is counted")?;
        }
        if self.cpu_time_ms == 0 || self.wall_time_ms == 0 {
            refuse("limits.wall_time_ms", "times must be above 0")?;
        }
        if self.open_files < 8 {
            refuse("limits.open_files", "at least 8")?;
        }
        Ok(())
    }
}

/// A path of a spec is absolute, has no `.`, `..` or NUL, and is not too long.
fn check_path(field: &'static str, path: &str) -> Result<(), SpecError> {
    let is_plain = Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.starts_with('/') || !is_plain || path.contains('\0') || path.contains("/./") {
        refuse(field, format!("`{path}` is not an absolute path without `.` and `..`"))?;
    }
    if path.len() > PATH_BYTES_MAX {
        refuse(field, format!("a path of {} bytes, at most {PATH_BYTES_MAX}", path.len()))?;
    }
    Ok(())
}

/// Why a sandbox is stopped from outside before its command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// Its owner asked.
    Cancelled,
    /// It wrote more output than it may.
    OutputLimit,
    /// Its time is over; the sandbox's own clock did not end it.
    WallLimit,
}

/// Why a sandbox ended. What was true first and explains the rest is named: a program that fails because the
/// kernel took its memory ended `OutOfMemory`, whatever its exit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The command returned, 0 to 255. 127: no such program; 126: it cannot be executed (as in POSIX `sh`).
    Exited(i32),
    /// A signal that none of the limits sent ended the command.
    Signaled(i32),
    /// The processor time was used up.
    CpuLimit,
    /// The time was used up.
    WallLimit,
    /// The memory limit was reached and the kernel killed for it.
    OutOfMemory,
    /// The command failed after it had been refused a process.
    PidsLimit,
    /// It wrote more than it may.
    OutputLimit,
    /// The command failed and a writable path was full.
    DiskLimit,
    /// Its owner stopped it.
    Cancelled,
    /// It could not be started or followed; says whether trying again can help.
    Failed {
        /// What could not be done.
        reason: String,
        /// Whether the same request may work on another try.
        retryable: bool,
    },
}

/// What a run used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// From the start of the command to its end, in microseconds.
    pub wall_us: u64,
    /// Processor time in user mode, in microseconds.
    pub cpu_user_us: u64,
    /// Processor time in the kernel, in microseconds.
    pub cpu_system_us: u64,
    /// Highest memory use, in bytes.
    pub memory_peak_bytes: u64,
    /// Processes that the kernel killed for memory.
    pub oom_kills: u64,
    /// How often a process was refused by the pids limit.
    pub pids_refused: u64,
    /// Time in which the processor share held the job back, in microseconds.
    pub throttled_us: u64,
}

/// How long each phase of a launch took, in microseconds; 0 where a warm sandbox had it behind itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    /// Whether the sandbox had been made ahead.
    pub warm: bool,
    /// New process with its namespaces.
    pub clone_us: u64,
    /// Joining the control groups.
    pub cgroup_us: u64,
    /// Network namespace and loopback.
    pub network_us: u64,
    /// Root, `/proc`, `/dev`, writable paths.
    pub mounts_us: u64,
    /// User namespace, ids, capabilities.
    pub credentials_us: u64,
    /// Installing the filter.
    pub seccomp_us: u64,
    /// From the request in pid 1 to the program's first instruction.
    pub exec_us: u64,
}

/// What an unpacked layer does not have although its archive does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Device nodes; a sandbox brings its own `/dev`.
    pub devices: u64,
    /// Extended attributes that belong to the host (`trusted.*`, `security.*` but for capabilities, overlayfs's own)
    /// or that the file system does not take.
    pub xattrs: u64,
}

/// Where programs are searched when neither an image nor a request says: what Docker takes.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What holds for the layer of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTerms {
    /// No file of it is younger than this, in seconds since 1970.
    pub epoch: Option<i64>,
}

/// A part of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Paths and patterns, relative to the root. Of folders it is what is in them.
    pub sources: Vec<String>,
    /// Patterns of what is left out, as in `.dockerignore`, relative to a source.
    pub exclude: Vec<String>,
    /// Whether the folders of a path come along.
    pub parents: bool,
}

/// How files are put on top of layers.
///
/// They come as a tar with three folders: what is in `d` is what is in a folder, and `d` itself that folder; what is in
/// `f` are single files, which can get another name; what is in `u` was in an archive, and keeps its owners and modes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceOrder {
    /// Where to, absolute. Links on the way are followed within the root.
    pub destination: String,
    /// Whether that is a folder, even for a single file and if it is not there yet.
    pub is_folder: bool,
    /// Whom everything belongs to, as `user[:group]`; looked up in the layers. Without it, whom the tar says.
    pub owner: Option<String>,
    /// The mode of everything, octal or symbolic. Without it, what the tar says.
    pub mode: Option<String>,
    /// What holds for the layer.
    pub terms: StepTerms,
}

/// A file that the artifact globs match and that did not come out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its absolute path in the sandbox.
    pub path: String,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// Why it was left out, for people.
    pub reason: String,
}

/// The last word of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why it ended.
    pub ending: Ending,
    /// What the program or its start said of the cause, for people; often empty.
    pub detail: String,
    /// What it used.
    pub figures: Figures,
    /// How its launch went.
    pub phases: Phases,
    /// Which artifacts were left out; the first ones, when there were many.
    pub left_out: Vec<LeftOut>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        let layer = LayerId::parse(&format!("sha256:{}", "0".repeat(64))).expect("this is a digest");
        let tmp = WritablePath { path: "/tmp".to_owned(), size_bytes: 1, inodes: 1 };
        SandboxSpec {
            id: "job".to_owned(),
            frame: Frame {
                layers: vec![layer],
                writable: vec![tmp],
                user: "0".to_owned(),
                hostname: "ampoule".to_owned(),
                network: Network::None,
            },
            command: Command {
                argv: vec!["true".to_owned()],
                env: vec![("A".to_owned(), "b=c".to_owned())],
                cwd: "/".to_owned(),
                artifacts: Artifacts::default(),
            },
            limits: Limits {
                memory_bytes: MEMORY_BYTES_MIN,
                cpu_milli: 1000,
                pids: 2,
                cpu_time_ms: 1,
                wall_time_ms: 1,
                open_files: 8,
                file_bytes: 0,
            },
        }
    }

    fn check(field: &str, change: impl FnOnce(&mut SandboxSpec)) {
        let mut spec = spec();
        spec.check().expect("the spec is fine as it is");
        change(&mut spec);
        assert_eq!(spec.check().expect_err("the change breaks a rule").field, field);
    }

    #[test]
    fn a_spec_that_breaks_a_rule_names_the_field() {
        check("frame.layers", |spec| spec.frame.layers.clear());
        check("frame.layers", |spec| spec.frame.layers = vec![spec.frame.layers[0].clone(); LAYERS_MAX + 1]);
        check("writable.path", |spec| spec.frame.writable[0].path = "/proc/x".to_owned());
        check("writable.path", |spec| spec.frame.writable[0].path = "/".to_owned());
        check("writable.path", |spec| spec.frame.writable[0].path = "/a/../proc".to_owned());
        check("writable.path", |spec| spec.frame.writable.push(spec.frame.writable[0].clone()));
        check("writable", |spec| spec.frame.writable[0].size_bytes = 0);
        check("hostname", |spec| spec.frame.hostname = String::new());
        check("user", |spec| spec.frame.user = "a\0b".to_owned());
        check("argv", |spec| spec.command.argv.clear());
        check("argv", |spec| spec.command.argv.push("x".repeat(COMMAND_BYTES_MAX)));
        check("env", |spec| spec.command.env.push(("A=B".to_owned(), String::new())));
        check("cwd", |spec| spec.command.cwd = "work".to_owned());
        check("artifacts", |spec| spec.command.artifacts.globs.push("*.xml".to_owned()));
        check("limits.memory_bytes", |spec| spec.limits.memory_bytes -= 1);
        check("limits.cpus", |spec| spec.limits.cpu_milli = 0);
        check("limits.pids", |spec| spec.limits.pids = 1);
        check("limits.wall_time_ms", |spec| spec.limits.wall_time_ms = 0);
        check("limits.open_files", |spec| spec.limits.open_files = 0);
    }

    proptest::proptest! {
        #[test]
        fn a_layer_is_named_by_nothing_but_a_digest(text in "\\PC{0,80}") {
            if let Ok(layer) = LayerId::parse(&text) {
                proptest::prop_assert_eq!(layer.hex().len(), 64);
                proptest::prop_assert!(!layer.hex().contains(['/', '.']));
            }
        }

        #[test]
        fn a_path_that_is_taken_leads_nowhere_else(path in "[/a.]{0,12}") {
            if check_path("cwd", &path).is_ok() {
                proptest::prop_assert!(path.starts_with('/'));
                proptest::prop_assert!(!path.split('/').any(|part| part == ".."));
            }
        }
    }
}
