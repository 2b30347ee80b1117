//! Policies that are components: loaded once, linked ahead, and instantiated anew for every call.

use std::sync::Arc;

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Instance, InstancePre, Linker};
use wasmtime::{Engine, Store};

use crate::admission::Admission;
use crate::binding::{Hook, Limits};
use crate::bindings::{self, admission, build, settings};
use crate::build::verdict::Answer as BuildAnswer;
use crate::build::{BuildRequest, contract};
use crate::engine::{self, Room};
use crate::failure::{Asked, Bounds, Failure};
use crate::host::{State, TRANSFER_BYTES_MAX};
use crate::verdict::Answer;

/// A component, ready to be asked.
pub(crate) struct Guest {
    pre: InstancePre<State>,
    admission: Option<admission::GuestIndices>,
    build: Option<build::GuestIndices>,
    settings: Option<settings::GuestIndices>,
    /// Whether it can reach WASI, which must not run on a thread that drives async tasks.
    is_wasi_needed: bool,
}

impl Guest {
    /// Links a component; its hooks are found by name, their types are checked by the first call of each.
    ///
    /// # Errors
    /// It imports what policies are not given.
    pub(crate) fn link(linker: &Linker<State>, component: &Component) -> wasmtime::Result<Guest> {
        let pre = linker.instantiate_pre(component)?;
        let is_wasi_needed =
            component.component_type().imports(linker.engine()).any(|(name, _)| name.starts_with("wasi:"));
        Ok(Guest {
            admission: admission::GuestIndices::new(&pre).ok(),
            build: build::GuestIndices::new(&pre).ok(),
            settings: settings::GuestIndices::new(&pre).ok(),
            pre,
            is_wasi_needed,
        })
    }

    /// The hooks that it answers.
    pub(crate) fn hooks(&self) -> Vec<Hook> {
        let admission = self.admission.iter().map(|_| Hook::Admission);
        let build = self.build.iter().map(|_| Hook::Build);
        admission.chain(build).chain(self.settings.iter().map(|_| Hook::Settings)).collect()
    }

    /// Instantiates it once and looks up every hook with its types, so that a mismatch shows now.
    ///
    /// # Errors
    /// It does not start, or exports a hook with other types than the contract's.
    pub(crate) fn try_hooks(&self, room: &Room, policy: &Arc<str>, limits: &Limits) -> Result<(), Failure> {
        let load = |store: &mut Store<State>, instance: &Instance| {
            self.admission.as_ref().map(|hook| hook.load(&mut *store, instance)).transpose()?;
            self.build.as_ref().map(|hook| hook.load(&mut *store, instance)).transpose()?;
            self.settings.as_ref().map(|hook| hook.load(&mut *store, instance)).transpose()?;
            Ok(())
        };
        self.call(room, policy, limits, load).result
    }

    /// Asks it what it thinks of its settings, if it wants to be asked.
    ///
    /// # Errors
    /// It could not be asked. The inner error is its own: what is wrong with them.
    pub(crate) fn validate(
        &self,
        room: &Room,
        policy: &Arc<str>,
        limits: &Limits,
        json: &str,
    ) -> Result<Result<(), String>, Failure> {
        let Some(hook) = &self.settings else { return Ok(Ok(())) };
        let validate = |store: &mut Store<State>, instance: &Instance| {
            hook.load(&mut *store, instance)?.call_validate(store, json)
        };
        self.call(room, policy, limits, validate).result
    }

    /// Asks it about a job.
    pub(crate) fn admit(
        &self,
        room: &Room,
        policy: &Arc<str>,
        limits: &Limits,
        job: &Admission,
        settings: &str,
    ) -> Asked<Answer> {
        let Some(hook) = &self.admission else {
            return Asked { result: Err(Failure::malformed("it does not answer `admission`")), fuel: 0 };
        };
        let request = admission::Request::from(job);
        let admit = |store: &mut Store<State>, instance: &Instance| {
            hook.load(&mut *store, instance)?.call_admit(store, &request, settings)
        };
        let Asked { result, fuel } = self.call(room, policy, limits, admit);
        Asked { result: result.and_then(|verdict| bindings::answer(verdict).map_err(Failure::malformed)), fuel }
    }

    /// Asks it about a build.
    pub(crate) fn review_plan(
        &self,
        room: &Room,
        policy: &Arc<str>,
        limits: &Limits,
        request: &BuildRequest,
        settings: &str,
    ) -> Asked<BuildAnswer> {
        let Some(hook) = &self.build else {
            return Asked { result: Err(Failure::malformed("it does not answer `build`")), fuel: 0 };
        };
        let request = build::Request::from(request);
        let review = |store: &mut Store<State>, instance: &Instance| {
            hook.load(&mut *store, instance)?.call_review_plan(store, &request, settings)
        };
        let Asked { result, fuel } = self.call(room, policy, limits, review);
        Asked { result: result.and_then(|verdict| contract::answer(verdict).map_err(Failure::malformed)), fuel }
    }

    fn call<T: Send>(
        &self,
        room: &Room,
        policy: &Arc<str>,
        limits: &Limits,
        ask: impl FnOnce(&mut Store<State>, &Instance) -> wasmtime::Result<T> + Send,
    ) -> Asked<T> {
        let _place = room.enter();
        let run = || self.run(room, policy, limits, ask);
        if self.is_wasi_needed { on_own_thread(run) } else { run() }
    }

    fn run<T>(
        &self,
        room: &Room,
        policy: &Arc<str>,
        limits: &Limits,
        ask: impl FnOnce(&mut Store<State>, &Instance) -> wasmtime::Result<T>,
    ) -> Asked<T> {
        let mut store = Store::new(&room.engine, State::new(Arc::clone(policy), limits.memory_bytes));
        store.limiter(|state| &mut state.memory);
        store.set_epoch_deadline(engine::ticks(limits.deadline_ms));
        store.set_hostcall_fuel(TRANSFER_BYTES_MAX);
        let result = store
            .set_fuel(limits.fuel)
            .and_then(|()| self.pre.instantiate(&mut store))
            .and_then(|instance| ask(&mut store, &instance));
        let fuel = limits.fuel - store.get_fuel().unwrap_or(0);
        Asked { result: result.map_err(|error| explain(&error, store.data(), limits)), fuel }
    }
}

fn explain(error: &wasmtime::Error, state: &State, limits: &Limits) -> Failure {
    Bounds {
        fuel: limits.fuel,
        deadline_ms: limits.deadline_ms,
        memory_bytes: limits.memory_bytes,
        is_memory_denied: state.memory.is_denied,
    }
    .explain(error)
    .with_output("log", &state.log_text())
    .with_output("standard error", &state.stderr_text())
}

/// Runs a call on a thread of its own: the synchronous WASI drives tasks itself, and panics where others are driven.
pub(crate) fn on_own_thread<T: Send>(call: impl FnOnce() -> Asked<T> + Send) -> Asked<T> {
    let spawned = std::thread::scope(|scope| {
        std::thread::Builder::new().name("policy".to_owned()).spawn_scoped(scope, call).map(|thread| thread.join())
    });
    match spawned {
        Ok(Ok(asked)) => asked,
        Ok(Err(_)) => Asked { result: Err(Failure::host("the host panicked")), fuel: 0 },
        Err(error) => Asked { result: Err(Failure::host(format!("no thread for the call: {error}"))), fuel: 0 },
    }
}

/// The interfaces of ours that a component exports, whatever their version: to say what it is when nothing fits.
pub(crate) fn exported_interfaces(engine: &Engine, component: &Component) -> Vec<String> {
    let component_type = component.component_type();
    component_type
        .exports(engine)
        .filter(|(_, export)| matches!(export.ty, ComponentItem::ComponentInstance(_)))
        .map(|(name, _)| name.to_owned())
        .collect()
}
