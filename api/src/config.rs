//! Settings as they are written (file, environment, flags: the later wins) and as they are meant (`Config`).
//! Defaults stand here and nowhere else. Knows nothing of the parts that are set.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ampoule_engine::image::registry::RegistryConfig;
use ampoule_engine::sandbox::launcher::EgressTerms;
use ampoule_plugins::{AdmissionLimits, RequestedLimits};
use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::limits;
use crate::registries::{self, RegistriesError};

/// The file that is read when no other is named and it exists.
pub const CONFIG_FILE: &str = "/etc/ampoule/ampoule.toml";
/// Longest configuration file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
const MIB: u64 = 1024 * 1024;
/// A layer may be unpacked while it is downloaded, and a slow registry needs patience.
const WORK_TIME: Duration = Duration::from_secs(3600);
/// The largest layer that is taken needs about two minutes.
const WORK_CPU_TIME: Duration = Duration::from_secs(600);
/// What the caches of builds may take: enough for the packages of a few languages.
const BUILD_CACHE_BYTES: u64 = 10 * 1024 * MIB;

/// Where clouds tell a machine about itself, its credentials included: never reached unless the operator says so.
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What the command line and the environment say of the service; each wins over the configuration file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Configuration file (TOML) [default: /etc/ampoule/ampoule.toml when it exists]
    #[arg(long, env = "AMPOULE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for images, jobs and their results [default: /var/lib/ampoule as root, else $XDG_DATA_HOME/ampoule]
    #[arg(long, env = "AMPOULE_STATE", value_name = "FOLDER")]
    pub state: Option<PathBuf>,
    /// Unix socket to listen on [default: /run/ampoule/ampoule.sock as root, else $XDG_RUNTIME_DIR/ampoule/ampoule.sock]
    #[arg(long, env = "AMPOULE_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Group that may use the socket
    #[arg(long, env = "AMPOULE_SOCKET_GROUP", value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// TCP address to listen on, as in 0.0.0.0:7070; needs tokens, and TLS
    #[arg(long, env = "AMPOULE_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Certificate chain for TLS (PEM)
    #[arg(long, env = "AMPOULE_TLS_CERTIFICATE", value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key for TLS (PEM)
    #[arg(long, env = "AMPOULE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Allow TCP without TLS on a loopback address
    #[arg(long, env = "AMPOULE_ALLOW_INSECURE_LOOPBACK")]
    pub allow_insecure_loopback: bool,
    /// User that the service becomes when started as root [default: ampoule when it exists, else nobody]
    #[arg(long, env = "AMPOULE_USER", value_name = "USER")]
    pub user: Option<String>,
    /// Which policies are asked (policies.toml)
    #[arg(long, env = "AMPOULE_POLICIES", value_name = "FILE")]
    pub policies: Option<PathBuf>,
    /// Which registries there are, their mirrors and logins (registries.toml)
    #[arg(long, env = "AMPOULE_REGISTRIES", value_name = "FILE")]
    pub registries: Option<PathBuf>,
    /// Jobs that run at once [default: two for each processor]
    #[arg(long, env = "AMPOULE_CONCURRENCY", value_name = "N")]
    pub concurrency: Option<u32>,
    /// Jobs that may wait [default: 10000]
    #[arg(long, env = "AMPOULE_QUEUE", value_name = "N")]
    pub queue: Option<u32>,
    /// Sandboxes that are made ahead [default: as many as run at once]
    #[arg(long, env = "AMPOULE_WARM", value_name = "N")]
    pub warm: Option<u32>,
    /// How long unpacking a layer may take, the download of it included [default: 1h]
    #[arg(long, env = "AMPOULE_WORK_TIME", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub work_time: Option<Duration>,
    /// How much processor time unpacking a layer may take [default: 10m]
    #[arg(long, env = "AMPOULE_WORK_CPU_TIME", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub work_cpu_time: Option<Duration>,
    /// What the caches of `RUN --mount=type=cache` may take on disk together; those that were not used for the longest
    /// time go first [default: 10737418240, which is 10 GiB]
    #[arg(long, env = "AMPOULE_BUILD_CACHE_BYTES", value_name = "BYTES")]
    pub build_cache_bytes: Option<u64>,
    /// How long running jobs may go on after a request to stop, as in 30s
    #[arg(long, env = "AMPOULE_DRAIN", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub drain: Option<Duration>,
    /// How log lines look
    #[arg(long, env = "AMPOULE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// The configuration file as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    state: Option<PathBuf>,
    user: Option<String>,
    policies: Option<PathBuf>,
    registries: Option<PathBuf>,
    concurrency: Option<u32>,
    queue: Option<u32>,
    warm: Option<u32>,
    threads: Option<u32>,
    work_time: Option<String>,
    work_cpu_time: Option<String>,
    build_cache_bytes: Option<u64>,
    drain: Option<String>,
    log_format: Option<LogFormat>,
    socket: WrittenSocket,
    tcp: WrittenTcp,
    bodies: WrittenBodies,
    retention: WrittenRetention,
    limits: WrittenLimits,
    network: WrittenNetwork,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenNetwork {
    egress: Option<bool>,
    jobs: Option<bool>,
    builds: Option<bool>,
    deny: Option<Vec<Ipv4Net>>,
    nameservers: Vec<Ipv4Addr>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenSocket {
    path: Option<PathBuf>,
    mode: Option<String>,
    group: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenTcp {
    listen: Option<SocketAddr>,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    allow_insecure_loopback: bool,
    connections_max: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenBodies {
    json_bytes_max: Option<u64>,
    upload_bytes_max: Option<u64>,
    image_bytes_max: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenRetention {
    age: Option<String>,
    jobs: Option<u64>,
    uploads: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenLimits {
    default: RequestedLimits,
    ceiling: RequestedLimits,
}

/// Settings as they are meant: complete, and checked against each other.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder for everything that is kept.
    pub state: PathBuf,
    /// The unix socket.
    pub socket: Socket,
    /// Where TCP is listened on, if at all.
    pub tcp: Option<Tcp>,
    /// User that the service becomes when started as root; `None` takes `ampoule`, or `nobody`.
    pub user: Option<String>,
    /// `policies.toml`; without it every job is admitted.
    pub policies: Option<PathBuf>,
    /// How registries are reached.
    pub registries: RegistryConfig,
    /// Jobs that run at once.
    pub concurrency: u32,
    /// Jobs that may wait.
    pub queue: u32,
    /// Sandboxes that are made ahead.
    pub warm: u32,
    /// How long unpacking a layer may take on the clock.
    pub work_time: Duration,
    /// How much processor time unpacking a layer may take.
    pub work_cpu_time: Duration,
    /// What the caches of builds may take on disk, in bytes.
    pub build_cache_bytes_max: u64,
    /// Threads that serve requests.
    pub threads: u32,
    /// How long running jobs may go on after a request to stop.
    pub drain: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Longest request bodies.
    pub bodies: Bodies,
    /// How long things are kept.
    pub retention: Retention,
    /// Bounds of a job that does not ask for its own.
    pub limits_default: AdmissionLimits,
    /// Highest bounds that a job can have.
    pub limits_ceiling: AdmissionLimits,
    /// Connections at once, over all listeners.
    pub connections_max: u32,
    /// What sandboxes reach.
    pub network: Network,
}

/// What sandboxes reach over the network.
#[derive(Clone, Debug)]
pub struct Network {
    /// How the world is reached; `None` when nothing reaches it.
    pub egress: Option<EgressTerms>,
    /// Whether a job gets it that asks for it.
    pub jobs: bool,
    /// Whether RUN has it unless it says otherwise.
    pub builds: bool,
}

/// The unix socket.
#[derive(Clone, Debug)]
pub struct Socket {
    /// Where it is.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// The group that it belongs to; `None` leaves that of the service's user.
    pub group: Option<String>,
}

/// A TCP listener. Every request on it needs a token.
#[derive(Clone, Debug)]
pub struct Tcp {
    /// The address.
    pub listen: SocketAddr,
    /// Certificate and key; `None` only on a loopback address where it was allowed.
    pub tls: Option<Tls>,
}

/// Certificate chain and private key, both PEM files.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Longest request bodies, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bodies {
    /// Of JSON.
    pub json_bytes_max: u64,
    /// Of an uploaded tar of files.
    pub upload_bytes_max: u64,
    /// Of an image archive.
    pub image_bytes_max: u64,
}

/// How long things are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Ended jobs with their output and artifacts.
    pub age: Duration,
    /// Most ended jobs; the oldest go first.
    pub jobs: u64,
    /// Uploads that no waiting job refers to.
    pub uploads: Duration,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("could not read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is too long to be a configuration.
    #[error("{file} is longer than {CONFIG_BYTES_MAX} bytes")]
    TooLong {
        /// The file.
        file: PathBuf,
    },
    /// The file is not understood; the source names the key.
    #[error("could not understand {file}")]
    Parse {
        /// The file.
        file: PathBuf,
        /// Line, key and what was expected.
        source: Box<toml::de::Error>,
    },
    /// A value cannot be used.
    #[error("`{key}` cannot be used: {problem}")]
    Value {
        /// The key, as in the file.
        key: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
    /// The registries cannot be used.
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    /// TCP without TLS.
    #[error(
        "tcp on {listen} has no TLS\nhint: name tls_certificate and tls_key, or allow_insecure_loopback on a loopback address"
    )]
    NoTls {
        /// The address.
        listen: SocketAddr,
    },
}

impl Config {
    /// Reads the file that the flags name (or the usual one, if it is there) and lays the flags over it.
    ///
    /// # Errors
    /// A file that cannot be read or has an unknown key, a value that cannot be used, TCP without TLS.
    pub fn load(flags: &Flags) -> Result<Config, ConfigError> {
        let usual = Path::new(CONFIG_FILE);
        let written = match &flags.config {
            Some(file) => read(file)?,
            None if usual.exists() => read(usual)?,
            None => Written::default(),
        };
        mean(written, flags)
    }
}

fn read(file: &Path) -> Result<Written, ConfigError> {
    let failed = |source| ConfigError::Read { file: file.to_owned(), source };
    let length = std::fs::metadata(file).map_err(failed)?.len();
    if length > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLong { file: file.to_owned() });
    }
    let text = std::fs::read_to_string(file).map_err(failed)?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse { file: file.to_owned(), source: Box::new(source) })
}

fn mean(written: Written, flags: &Flags) -> Result<Config, ConfigError> {
    let processors = std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    let concurrency = positive("concurrency", flags.concurrency.or(written.concurrency).unwrap_or(2 * processors))?;
    let (limits_default, limits_ceiling) = mean_limits(&written.limits, processors)?;
    let drain = match flags.drain {
        Some(time) => time,
        None => duration("drain", written.drain.as_deref(), Duration::from_secs(30))?,
    };
    let work_time = match flags.work_time {
        Some(time) => time,
        None => duration("work_time", written.work_time.as_deref(), WORK_TIME)?,
    };
    let work_cpu_time = match flags.work_cpu_time {
        Some(time) => time,
        None => duration("work_cpu_time", written.work_cpu_time.as_deref(), WORK_CPU_TIME)?,
    };
    Ok(Config {
        state: flags.state.clone().or(written.state).unwrap_or_else(default_state),
        socket: mean_socket(written.socket, flags)?,
        connections_max: positive("tcp.connections_max", written.tcp.connections_max.unwrap_or(4096))?,
        tcp: mean_tcp(written.tcp, flags)?,
        user: flags.user.clone().or(written.user),
        policies: flags.policies.clone().or(written.policies),
        registries: flags
            .registries
            .as_ref()
            .or(written.registries.as_ref())
            .map_or_else(no_registries, |file| registries::load(file))?,
        concurrency,
        queue: positive("queue", flags.queue.or(written.queue).unwrap_or(10_000))?,
        warm: flags.warm.or(written.warm).unwrap_or(concurrency),
        work_time,
        work_cpu_time,
        build_cache_bytes_max: flags.build_cache_bytes.or(written.build_cache_bytes).unwrap_or(BUILD_CACHE_BYTES),
        threads: positive("threads", written.threads.unwrap_or(processors.div_ceil(2)))?,
        drain,
        log_format: flags.log_format.or(written.log_format).unwrap_or_default(),
        bodies: Bodies {
            json_bytes_max: written.bodies.json_bytes_max.unwrap_or(16 * MIB),
            upload_bytes_max: written.bodies.upload_bytes_max.unwrap_or(512 * MIB),
            image_bytes_max: written.bodies.image_bytes_max.unwrap_or(16 * 1024 * MIB),
        },
        retention: mean_retention(&written.retention)?,
        network: mean_network(written.network),
        limits_default,
        limits_ceiling,
    })
}

/// Without a file, every registry is asked by its own name.
fn no_registries() -> Result<RegistryConfig, RegistriesError> {
    Ok(RegistryConfig::default())
}

fn mean_socket(written: WrittenSocket, flags: &Flags) -> Result<Socket, ConfigError> {
    let mode = match written.mode.as_deref() {
        None => 0o660,
        Some(text) => {
            u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| ConfigError::Value {
                key: "socket.mode",
                problem: format!("`{text}` is not octal permission bits, as in `0660`"),
            })?
        }
    };
    Ok(Socket {
        path: flags.socket.clone().or(written.path).unwrap_or_else(default_socket),
        mode,
        group: flags.socket_group.clone().or(written.group),
    })
}

fn mean_tcp(written: WrittenTcp, flags: &Flags) -> Result<Option<Tcp>, ConfigError> {
    let Some(listen) = flags.listen.or(written.listen) else { return Ok(None) };
    let certificate = flags.tls_certificate.clone().or(written.tls_certificate);
    let key = flags.tls_key.clone().or(written.tls_key);
    let insecure_is_allowed = flags.allow_insecure_loopback || written.allow_insecure_loopback;
    let tls = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Tls { certificate, key }),
        (None, None) if insecure_is_allowed && listen.ip().is_loopback() => None,
        (None, None) => return Err(ConfigError::NoTls { listen }),
        _ => {
            let problem = "certificate and key belong together; one of them is missing".to_owned();
            return Err(ConfigError::Value { key: "tcp.tls_certificate", problem });
        }
    };
    Ok(Some(Tcp { listen, tls }))
}

fn mean_retention(written: &WrittenRetention) -> Result<Retention, ConfigError> {
    Ok(Retention {
        age: duration("retention.age", written.age.as_deref(), Duration::from_secs(7 * 24 * 3600))?,
        jobs: written.jobs.unwrap_or(100_000),
        uploads: duration("retention.uploads", written.uploads.as_deref(), Duration::from_secs(3600))?,
    })
}

fn mean_network(written: WrittenNetwork) -> Network {
    let WrittenNetwork { egress, jobs, builds, deny, nameservers } = written;
    let has_egress = egress.unwrap_or(true);
    let denied = deny.unwrap_or_else(|| vec![LINK_LOCAL]);
    Network {
        egress: has_egress.then_some(EgressTerms { denied, nameservers }),
        jobs: has_egress && jobs.unwrap_or(false),
        builds: has_egress && builds.unwrap_or(true),
    }
}

fn mean_limits(written: &WrittenLimits, processors: u32) -> Result<(AdmissionLimits, AdmissionLimits), ConfigError> {
    let ceiling = limits::lay_over(&written.ceiling, &limits::ceilings(processors));
    let default = limits::lay_over(&written.default, &limits::defaults());
    match limits::check(&default, &ceiling) {
        Ok(()) => Ok((default, ceiling)),
        Err(above) => Err(ConfigError::Value { key: "limits.default", problem: above.to_string() }),
    }
}

fn positive(key: &'static str, value: u32) -> Result<u32, ConfigError> {
    if value == 0 {
        return Err(ConfigError::Value { key, problem: "it must be at least 1".to_owned() });
    }
    Ok(value)
}

fn duration(key: &'static str, text: Option<&str>, default: Duration) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    humantime::parse_duration(text).map_err(|cause| ConfigError::Value { key, problem: format!("`{text}`: {cause}") })
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where the state is kept when nothing else is said.
pub fn default_state() -> PathBuf {
    let data = || std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    match (is_root(), data().or_else(home)) {
        (false, Some(data)) => data.join("ampoule"),
        _ => PathBuf::from("/var/lib/ampoule"),
    }
}

/// Where the socket is when nothing else is said: for the service and for its clients.
pub fn default_socket() -> PathBuf {
    match (is_root(), std::env::var_os("XDG_RUNTIME_DIR")) {
        (false, Some(runtime)) => Path::new(&runtime).join("ampoule/ampoule.sock"),
        (false, None) => default_state().join("ampoule.sock"),
        (true, _) => PathBuf::from("/run/ampoule/ampoule.sock"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, flags: Flags) -> Result<Config, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ampoule.toml");
        std::fs::write(&file, text).expect("a file");
        Config::load(&Flags { config: Some(file), ..flags }).map_err(|error| match &error {
            ConfigError::Parse { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        })
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_file_and_its_name() {
        let error = load("[socket]\nmod = '0660'\n", Flags::default()).expect_err("refused");
        assert!(error.contains("ampoule.toml") && error.contains("unknown field `mod`"), "{error}");
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let config = load("queue = 7\nconcurrency = 3\n", Flags { queue: Some(8), ..Flags::default() }).expect("loads");
        assert_eq!((config.queue, config.concurrency, config.warm), (8, 3, 3));
    }

    #[test]
    fn tcp_needs_tls_unless_loopback_was_allowed() {
        assert!(load("[tcp]\nlisten = '127.0.0.1:1'\n", Flags::default()).expect_err("refused").contains("TLS"));
        let open = "[tcp]\nlisten = '0.0.0.0:1'\nallow_insecure_loopback = true\n";
        assert!(load(open, Flags::default()).expect_err("refused").contains("TLS"));
        let loopback = "[tcp]\nlisten = '127.0.0.1:1'\nallow_insecure_loopback = true\n";
        assert!(load(loopback, Flags::default()).expect("loads").tcp.expect("a listener").tls.is_none());
    }

    #[test]
    fn a_default_limit_above_its_ceiling_is_refused() {
        let text = "[limits.default]\nmemory_bytes = 1000000000\n[limits.ceiling]\nmemory_bytes = 100000000\n";
        let error = load(text, Flags::default()).expect_err("refused");
        assert!(error.contains("memory_bytes"), "{error}");
    }
}
