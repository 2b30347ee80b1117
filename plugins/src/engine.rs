//! What policies run in: one engine with its pool of instances, the clock behind their deadlines, and the gate that
//! lets in no more calls than the pool has room for.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wasmtime::{Config, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig};

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
pub(crate) const TABLE_ELEMENTS_MAX: usize = 30_000;

/// The engine that all policies of a service share, with its clock.
pub(crate) struct Room {
    pub(crate) engine: Engine,
    gate: Arc<Gate>,
}

impl Room {
    /// Makes the engine and starts its clock.
    pub(crate) fn open() -> wasmtime::Result<Room> {
        let engine = Engine::new(&config())?;
        let gate = Arc::new(Gate::default());
        start_clock(engine.weak(), Arc::clone(&gate))?;
        Ok(Room { engine, gate })
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

impl Drop for Room {
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use wasmtime::{Instance, Module, Store, Trap};

    use super::*;

    /// Longest time until an idle clock has to be asleep: many times what it takes.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn spin(room: &Room) -> Option<Trap> {
        let _place = room.enter();
        let wasm = wat::parse_str("(module (func (export \"spin\") (loop $again (br $again))))").expect("it is text");
        let module = Module::new(&room.engine, wasm).expect("it is a module");
        let mut store = Store::new(&room.engine, ());
        store.set_fuel(u64::MAX).expect("fuel is counted");
        store.set_epoch_deadline(ticks(50));
        let instance = Instance::new(&mut store, &module, &[]).expect("it needs nothing");
        let spin = instance.get_typed_func::<(), ()>(&mut store, "spin").expect("it exports the loop");
        spin.call(&mut store, ()).expect_err("the loop has no end").downcast_ref::<Trap>().copied()
    }

    #[test]
    fn a_clock_that_fell_asleep_wakes_for_the_next_call() {
        let room = Room::open().expect("an engine");
        assert_eq!(spin(&room), Some(Trap::Interrupt));
        let start = Instant::now();
        while !room.gate.lock().is_clock_asleep {
            assert!(start.elapsed() < PATIENCE, "the clock does not sleep");
            std::thread::yield_now();
        }
        assert_eq!(spin(&room), Some(Trap::Interrupt));
    }

    #[test]
    fn the_clock_ends_with_its_engine() {
        let room = Room::open().expect("an engine");
        let engine = room.engine.weak();
        let gate = Arc::downgrade(&room.gate);
        drop(room);
        let start = Instant::now();
        while engine.upgrade().is_some() || gate.strong_count() > 0 {
            assert!(start.elapsed() < PATIENCE, "the clock outlives its engine");
            std::thread::yield_now();
        }
    }
}
