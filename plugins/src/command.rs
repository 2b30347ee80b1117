//! Policies that are WASI commands (preview 1): the question as JSON on standard input, the hook's name as the first
//! argument, the verdict as JSON on standard output. Any language that compiles to WASI can be one.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wasmtime::{Engine, InstancePre, Linker, Module, Store};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::p2::pipe::{MemoryInputPipe, MemoryOutputPipe};

use crate::admission::Admission;
use crate::binding::{Hook, Limits};
use crate::build::BuildRequest;
use crate::build::verdict::{Answer as BuildAnswer, Written as BuildWritten};
use crate::component::on_own_thread;
use crate::engine::{self, Room};
use crate::failure::{Asked, Bounds, Failure};
use crate::host::{self, Memory, STDERR_BYTES_MAX, TRANSFER_BYTES_MAX};
use crate::verdict::{Answer, Change, Refusal, Verdict, Warning};

/// The version of the JSON, counted with the WIT package.
const CONTRACT: &str = "1.0";

/// What one call of a command can reach.
pub(crate) struct State {
    memory: Memory,
    wasi: WasiP1Ctx,
}

/// A linker with the sealed WASI in it.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    p1::add_to_linker_sync(&mut linker, |state: &mut State| &mut state.wasi)?;
    // The one function that can wait: no fuel and no deadline would reach a policy that sleeps in it.
    linker.allow_shadowing(true);
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "poll_oneoff",
        |_: i32, _: i32, _: i32, _: i32| -> wasmtime::Result<i32> {
            Err(wasmtime::Error::msg("a policy cannot wait: its clock stands still"))
        },
    )?;
    Ok(linker)
}

/// A command, ready to be asked.
pub(crate) struct Guest {
    pre: InstancePre<State>,
}

/// The question as a command reads it.
#[derive(Serialize)]
struct Question<'a, R> {
    contract: &'static str,
    hook: &'static str,
    settings: &'a serde_json::value::RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a R>,
}

/// The verdict as a command writes it.
#[derive(Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case", deny_unknown_fields)]
enum Written {
    Allow {
        #[serde(default)]
        warnings: Vec<Warning>,
    },
    Deny {
        code: String,
        reason: String,
        #[serde(default)]
        hint: String,
        #[serde(default)]
        warnings: Vec<Warning>,
    },
    Change {
        changes: Vec<Change>,
        #[serde(default)]
        warnings: Vec<Warning>,
    },
}

impl From<Written> for Answer {
    fn from(written: Written) -> Answer {
        match written {
            Written::Allow { warnings } => Answer { verdict: Verdict::Allow, warnings },
            Written::Deny { code, reason, hint, warnings } => {
                Answer { verdict: Verdict::Deny(Refusal { code, reason, hint }), warnings }
            }
            Written::Change { changes, warnings } => Answer { verdict: Verdict::Change(changes), warnings },
        }
    }
}

impl Guest {
    /// Links a command.
    ///
    /// # Errors
    /// It imports more than WASI preview 1, or is no command.
    pub(crate) fn link(linker: &Linker<State>, module: &Module) -> wasmtime::Result<Guest> {
        if module.get_export("_start").and_then(|export| export.func().cloned()).is_none() {
            return Err(wasmtime::Error::msg("a core module without `_start` is neither a command nor a component"));
        }
        Ok(Guest { pre: linker.instantiate_pre(module)? })
    }

    /// Asks it what it thinks of its settings.
    ///
    /// # Errors
    /// It could not be asked. The inner error is its own: what is wrong with them.
    pub(crate) fn validate(
        &self,
        room: &Room,
        policy: &Arc<str>,
        limits: &Limits,
        settings: &str,
    ) -> Result<Result<(), String>, Failure> {
        let answer = self.ask(room, policy, limits, Hook::Settings, settings, None::<&Admission>);
        let answer: Answer = answer.result.and_then(|answer| read_answer::<Written, _>(&answer))?;
        match answer.verdict {
            Verdict::Allow => Ok(Ok(())),
            Verdict::Deny(refusal) => Ok(Err(refusal.reason)),
            Verdict::Change(_) => Err(Failure::malformed("settings cannot be changed by a policy")),
        }
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
        let Asked { result, fuel } = self.ask(room, policy, limits, Hook::Admission, settings, Some(job));
        Asked { result: result.and_then(|answer| read_answer::<Written, _>(&answer)), fuel }
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
        let Asked { result, fuel } = self.ask(room, policy, limits, Hook::Build, settings, Some(request));
        Asked { result: result.and_then(|answer| read_answer::<BuildWritten, _>(&answer)), fuel }
    }

    fn ask<R: Serialize>(
        &self,
        room: &Room,
        policy: &Arc<str>,
        limits: &Limits,
        hook: Hook,
        settings: &str,
        request: Option<&R>,
    ) -> Asked<Vec<u8>> {
        let question = match question(hook, settings, request) {
            Ok(question) => question,
            Err(error) => return Asked { result: Err(Failure::host(format!("no question: {error}"))), fuel: 0 },
        };
        let _place = room.enter();
        on_own_thread(|| self.run(room, policy, limits, hook, question))
    }

    fn run(&self, room: &Room, policy: &Arc<str>, limits: &Limits, hook: Hook, question: Vec<u8>) -> Asked<Vec<u8>> {
        let stdout = MemoryOutputPipe::new(TRANSFER_BYTES_MAX);
        let stderr = MemoryOutputPipe::new(STDERR_BYTES_MAX);
        let wasi = host::sealed_wasi()
            .args(&[&**policy, hook.name()])
            .stdin(MemoryInputPipe::new(question))
            .stdout(stdout.clone())
            .stderr(stderr.clone())
            .build_p1();
        let mut store = Store::new(&room.engine, State { memory: Memory::new(limits.memory_bytes), wasi });
        store.limiter(|state| &mut state.memory);
        store.set_epoch_deadline(engine::ticks(limits.deadline_ms));
        let result = store
            .set_fuel(limits.fuel)
            .and_then(|()| self.pre.instantiate(&mut store))
            .and_then(|instance| instance.get_typed_func::<(), ()>(&mut store, "_start"))
            .and_then(|start| start.call(&mut store, ()));
        let fuel = limits.fuel - store.get_fuel().unwrap_or(0);
        let bounds = Bounds {
            fuel: limits.fuel,
            deadline_ms: limits.deadline_ms,
            memory_bytes: limits.memory_bytes,
            is_memory_denied: store.data().memory.is_denied,
        };
        let answer = stdout.contents();
        let result = match result {
            _ if answer.len() >= TRANSFER_BYTES_MAX => {
                Err(Failure::malformed(format!("it wrote more than {TRANSFER_BYTES_MAX} bytes")))
            }
            Err(error) if !is_success(&error) => Err(bounds.explain(&error)),
            _ => Ok(answer.to_vec()),
        };
        Asked { result: result.map_err(|failure| failure.with_output("standard error", &host::text(&stderr))), fuel }
    }
}

/// A command that calls `exit(0)` ends like one that returns.
fn is_success(error: &wasmtime::Error) -> bool {
    error.downcast_ref::<I32Exit>().is_some_and(|exit| exit.0 == 0)
}

fn question<R: Serialize>(hook: Hook, settings: &str, request: Option<&R>) -> serde_json::Result<Vec<u8>> {
    let settings = serde_json::from_str(settings)?;
    serde_json::to_vec(&Question { contract: CONTRACT, hook: hook.name(), settings, request })
}

/// Reads an answer, in the form `W` in which a command writes it.
fn read_answer<W: DeserializeOwned, A: From<W>>(answer: &[u8]) -> Result<A, Failure> {
    serde_json::from_slice::<W>(answer)
        .map(A::from)
        .map_err(|error| Failure::malformed(format!("no verdict could be read from its output: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_unknown_or_missing_fields_is_malformed() {
        let is_read = |json: &str| read_answer::<Written, Answer>(json.as_bytes()).is_ok();
        assert!(is_read(r#"{"verdict":"allow"}"#));
        assert!(is_read(r#"{"verdict":"allow","warnings":[{"code":"a","message":"b"}]}"#));
        assert!(is_read(r#"{"verdict":"deny","code":"a","reason":"b"}"#));
        assert!(is_read(
            r#"{"verdict":"change","changes":[{"set_limit":{"name":"pids","value":3}},{"set_user":"1"}]}"#
        ));
        assert!(!is_read(r#"{"verdict":"allow","reason":"b"}"#));
        assert!(!is_read(r#"{"verdict":"deny"}"#));
        assert!(!is_read(r#"{"verdict":"maybe"}"#));
        assert!(!is_read(r#"{"verdict":"change","changes":[{"set_colour":"red"}]}"#));
        assert!(!is_read(r#"{"verdict":"allow"}{"verdict":"allow"}"#));
        assert!(!is_read(""));
    }
}
