//! What policies run in: one engine with its clock and its pool of instances, and all that a policy may ask.
//! That is a log and a WASI with nothing behind it: no file, no network, a clock that stands, chance that repeats.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Config, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig, ResourceLimiter};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::random::Deterministic;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::bindings::{Hooks, log, types};
use crate::command;

/// How many calls run at once; more wait.
const CALLS_MAX: u32 = 16;
/// How often the clock behind the deadlines ticks.
const TICK: Duration = Duration::from_millis(10);
/// Ticks without a call after which the clock stops until the next call.
const IDLE_TICKS_MAX: u32 = 100;
/// Stack of a policy, in bytes; well below the 2 MiB of a thread of the service.
const STACK_BYTES: usize = 512 * 1024;
/// Most memory that any policy can be given, in bytes.
pub(crate) const MEMORY_BYTES_MAX: u64 = 512 << 20;
/// Most elements of one table; the largest interpreter that was measured has fewer.
const TABLE_ELEMENTS_MAX: usize = 30_000;
/// Most bytes that a policy hands to the host in one call, its answer included.
pub(crate) const TRANSFER_BYTES_MAX: usize = 1 << 20;
/// Most bytes of standard error; a policy that writes more gets an error from its write.
pub(crate) const STDERR_BYTES_MAX: usize = 64 * 1024;
/// Most log lines of one call; more are dropped.
const LOG_LINES_MAX: usize = 64;
/// Longest log line, in bytes; the rest is cut off.
const LOG_LINE_BYTES_MAX: usize = 2048;

/// The engine that all policies of a service share.
pub(crate) struct Host {
    pub(crate) engine: Engine,
    pub(crate) components: Linker<State>,
    pub(crate) commands: wasmtime::Linker<command::State>,
    gate: Arc<Gate>,
}

impl Host {
    /// Makes engine, linkers and clock.
    pub(crate) fn new() -> wasmtime::Result<Host> {
        let engine = Engine::new(&config())?;
        let mut components = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_sync(&mut components)?;
        Hooks::add_to_linker::<_, wasmtime::component::HasSelf<State>>(&mut components, |state| state)?;
        forbid_waiting(&mut components)?;
        let commands = command::linker(&engine)?;
        let gate = Arc::new(Gate::default());
        start_clock(engine.weak(), Arc::clone(&gate))?;
        Ok(Host { engine, components, commands, gate })
    }

    /// Waits for one of the places in the pool; each is held for one call, whose time is bounded.
    pub(crate) fn enter(&self) -> Place<'_> {
        self.gate.enter()
    }
}

/// Turns a deadline into ticks of the clock, rounded up, with one more for the tick under way.
pub(crate) fn ticks(deadline_ms: u64) -> u64 {
    let tick_ms = u64::try_from(TICK.as_millis()).unwrap_or(1);
    deadline_ms.div_ceil(tick_ms) + 1
}

fn config() -> Config {
    let mut config = Config::new();
    config.consume_fuel(true);
    config.epoch_interruption(true);
    config.max_wasm_stack(STACK_BYTES);
    // Equal questions get bit-equal answers on every machine.
    config.cranelift_nan_canonicalization(true);
    config.relaxed_simd_deterministic(true);
    config.memory_reservation(MEMORY_BYTES_MAX);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    config
}

/// An interpreter with its adapters takes dozens of core instances; a plain guest takes a handful.
fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(CALLS_MAX);
    pool.total_core_instances(64 * CALLS_MAX);
    pool.total_memories(4 * CALLS_MAX);
    pool.total_tables(32 * CALLS_MAX);
    pool.max_memories_per_component(4);
    pool.max_tables_per_component(32);
    pool.max_tables_per_module(2);
    pool.table_elements(TABLE_ELEMENTS_MAX);
    pool.max_memory_size(usize::try_from(MEMORY_BYTES_MAX).unwrap_or(usize::MAX));
    pool
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

/// Counts the calls under way, and wakes the clock for the first.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    left: Condvar,
    woken: Condvar,
}

#[derive(Default)]
struct GateState {
    calls: u32,
    /// Whether there was a call since the clock last looked.
    is_busy: bool,
    is_clock_asleep: bool,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> Place<'_> {
        let mut state = self.lock();
        while state.calls >= CALLS_MAX {
            state = self.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.calls += 1;
        state.is_busy = true;
        if state.is_clock_asleep {
            state.is_clock_asleep = false;
            self.woken.notify_all();
        }
        Place { gate: self }
    }
}

/// A place in the pool, given back when dropped.
pub(crate) struct Place<'a> {
    gate: &'a Gate,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.gate.lock().calls -= 1;
        self.gate.left.notify_one();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A sleeping clock has to look whether its engine is still there.
        self.gate.lock().is_clock_asleep = false;
        self.gate.woken.notify_all();
    }
}

/// Starts the thread that ends calls whose time is over. It sleeps while there are none, and ends with the engine.
fn start_clock(engine: EngineWeak, gate: Arc<Gate>) -> wasmtime::Result<()> {
    std::thread::Builder::new().name("policy-clock".to_owned()).spawn(move || {
        let mut idle_ticks = 0;
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
            let mut state = gate.lock();
            idle_ticks = if state.calls > 0 || state.is_busy { 0 } else { idle_ticks + 1 };
            state.is_busy = false;
            if idle_ticks >= IDLE_TICKS_MAX {
                idle_ticks = 0;
                state.is_clock_asleep = true;
                while state.is_clock_asleep {
                    state = gate.woken.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    })?;
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
