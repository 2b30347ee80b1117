//! What a policy may ask: a log, and a WASI with nothing behind it. No file, no network, a clock that stands, chance
//! that repeats. And what bounds the memory of a call.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime::{Engine, ResourceLimiter};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::random::Deterministic;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::bindings::{Hooks, log, types};
use crate::engine::TABLE_ELEMENTS_MAX;

/// Most bytes that a policy hands to the host in one call, its answer included.
pub(crate) const TRANSFER_BYTES_MAX: usize = 1 << 20;
/// Most bytes of standard error; a policy that writes more gets an error from its write.
pub(crate) const STDERR_BYTES_MAX: usize = 64 * 1024;
/// Most log lines of one call; more are dropped.
const LOG_LINES_MAX: usize = 64;
/// Longest log line, in bytes; the rest is cut off.
const LOG_LINE_BYTES_MAX: usize = 2048;

/// A linker with all of it.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_sync(&mut linker)?;
    Hooks::add_to_linker::<_, HasSelf<State>>(&mut linker, |state| state)?;
    forbid_waiting(&mut linker)?;
    Ok(linker)
}

/// Makes every function of WASI that could wait a trap: a policy that sleeps would hold a thread of the service
/// where no fuel and no deadline reaches it.
fn forbid_waiting(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut clock = linker.instance("wasi:clocks/monotonic-clock@0.2.12")?;
    for name in ["subscribe-instant", "subscribe-duration"] {
        clock.func_new(name, |_, _, _, _| Err(wasmtime::Error::msg("a policy cannot wait: its clock stands still")))?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

/// Bounds the memory of one call and remembers a denied growth, which a trap does not show.
pub(crate) struct Memory {
    bytes_max: usize,
    bytes: usize,
    /// Whether a growth was denied.
    pub(crate) is_denied: bool,
}

impl Memory {
    /// At most `bytes_max` in all memories of the call together.
    pub(crate) fn new(bytes_max: u64) -> Memory {
        Memory { bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX), bytes: 0, is_denied: false }
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.bytes.saturating_add(desired.saturating_sub(current));
        if total > self.bytes_max {
            self.is_denied = true;
            return Ok(false);
        }
        self.bytes = total;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }
}

/// What one call of a component can reach.
pub(crate) struct State {
    policy: Arc<str>,
    pub(crate) memory: Memory,
    log_lines: Vec<String>,
    stderr: Option<MemoryOutputPipe>,
    wasi: Option<WasiCtx>,
    table: ResourceTable,
}

impl State {
    /// For one call of the policy of this name.
    pub(crate) fn new(policy: Arc<str>, memory_bytes: u64) -> State {
        State {
            policy,
            memory: Memory::new(memory_bytes),
            log_lines: Vec::new(),
            stderr: None,
            wasi: None,
            table: ResourceTable::new(),
        }
    }

    /// What the policy wrote to its log.
    pub(crate) fn log_text(&self) -> String {
        self.log_lines.join("\n")
    }

    /// What the policy wrote to its standard error.
    pub(crate) fn stderr_text(&self) -> String {
        self.stderr.as_ref().map(text).unwrap_or_default()
    }
}

/// What a bounded pipe holds, as text.
pub(crate) fn text(pipe: &MemoryOutputPipe) -> String {
    String::from_utf8_lossy(&pipe.contents()).into_owned()
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        // Made when it is first asked for: compiled guests never do, and it costs as much as half their call.
        let ctx = self.wasi.get_or_insert_with(|| {
            let stderr = self.stderr.insert(MemoryOutputPipe::new(STDERR_BYTES_MAX));
            sealed_wasi().stderr(stderr.clone()).build()
        });
        WasiCtxView { ctx, table: &mut self.table }
    }
}

/// A WASI with nothing behind it.
pub(crate) fn sealed_wasi() -> WasiCtxBuilder {
    // Interpreters seed their hash tables from this; any sequence does, as long as it is always the same.
    let chance = || Deterministic::new((0..=u8::MAX).map(|byte| byte.wrapping_mul(167).wrapping_add(13)).collect());
    let mut wasi = WasiCtxBuilder::new();
    wasi.secure_random(chance())
        .insecure_random(chance())
        .insecure_random_seed(0)
        .wall_clock(StandingClock)
        .monotonic_clock(StandingClock)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    wasi
}

/// It is always the first second of 2020.
struct StandingClock;

impl HostWallClock for StandingClock {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }
    fn now(&self) -> Duration {
        Duration::from_secs(1_577_836_800)
    }
}

impl HostMonotonicClock for StandingClock {
    fn resolution(&self) -> u64 {
        1_000_000_000
    }
    fn now(&self) -> u64 {
        0
    }
}

impl types::Host for State {}

impl log::Host for State {
    fn log(&mut self, level: log::Level, mut message: String) {
        if self.log_lines.len() >= LOG_LINES_MAX {
            return;
        }
        let end = (0..=LOG_LINE_BYTES_MAX.min(message.len())).rev().find(|index| message.is_char_boundary(*index));
        message.truncate(end.unwrap_or(0));
        let policy = &*self.policy;
        match level {
            log::Level::Debug => tracing::debug!(policy, "{message}"),
            log::Level::Info => tracing::info!(policy, "{message}"),
            log::Level::Warn => tracing::warn!(policy, "{message}"),
            log::Level::Error => tracing::error!(policy, "{message}"),
        }
        self.log_lines.push(message);
    }
}
