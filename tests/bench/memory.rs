//! What the service and the launcher take at rest, and what each live sandbox adds.

use std::fs;
use std::thread;
use std::time::Duration;

use ampoule_tests::{Options, Service, host, service};
use anyhow::{Context, Result};

/// Sandboxes that are made ahead for the measurement.
const SANDBOXES: u64 = 64;
/// How long nothing happens before memory is read: pools are full and freed pages are given back then.
const REST: Duration = Duration::from_secs(3);

/// Bytes of memory.
pub(crate) struct Memory {
    /// The service's own share.
    pub(crate) service_bytes: u64,
    /// The launcher's own share, with its zygotes.
    pub(crate) launcher_bytes: u64,
    /// What the machine has less for each sandbox that waits for a command, kernel objects included.
    pub(crate) sandbox_bytes: u64,
}

/// Measures a service at rest, first without sandboxes made ahead and then with many.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn measure() -> Result<Memory> {
    let resting = at_rest(0)?;
    let full = at_rest(SANDBOXES)?;
    Ok(Memory {
        sandbox_bytes: resting.available_bytes.saturating_sub(full.available_bytes) / full.warm.max(1),
        ..resting.memory
    })
}

struct Rest {
    memory: Memory,
    available_bytes: u64,
    warm: u64,
}

fn at_rest(warm: u64) -> Result<Rest> {
    let concurrency = warm.max(4).to_string();
    let arguments = ["--warm", &warm.to_string(), "--concurrency", &concurrency].map(str::to_owned).to_vec();
    let instance = Service::with(Options { arguments, ..Options::default() });
    for _ in 0..16 {
        instance.run(&service::command(&["/bin/true"]));
    }
    thread::sleep(REST);
    let launcher = instance.launcher().as_raw();
    let waiting: Vec<_> = host::descendants(launcher);
    let zygotes = waiting.iter().filter(|process| process.name.contains("zygote"));
    let launcher_bytes =
        host::memory_bytes(launcher) + zygotes.map(|process| host::memory_bytes(process.pid)).sum::<u64>();
    let inits = waiting.iter().filter(|process| process.name.contains("init")).count();
    let memory =
        Memory { service_bytes: host::memory_bytes(instance.pid().as_raw()), launcher_bytes, sandbox_bytes: 0 };
    Ok(Rest { memory, available_bytes: available_bytes()?, warm: inits as u64 })
}

fn available_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}
