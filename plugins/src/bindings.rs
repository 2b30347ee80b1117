//! The contract in Rust: the only `bindgen!`, and how its types become ours and ours become them.

use crate::admission::{Admission, AdmissionLimits, AdmissionWritable, RequestedLimits};
use crate::verdict::{Answer, Change, LimitName, Refusal, Verdict, Warning};

mod generated {
    wasmtime::component::bindgen!({
        path: "../sdk/wit",
        inline: r"
            package ampoule:host;
            world hooks {
                import ampoule:policy/log@1.0.0;
                export ampoule:policy/admission@1.0.0;
                export ampoule:policy/build@1.0.0;
                export ampoule:policy/settings@1.0.0;
            }
        ",
        world: "ampoule:host/hooks",
    });
}

pub(crate) use generated::Hooks;
pub(crate) use generated::ampoule::policy::log;
pub(crate) use generated::ampoule::policy::types;
pub(crate) use generated::exports::ampoule::policy::{admission, build, settings};

impl From<&Admission> for admission::Request {
    fn from(job: &Admission) -> admission::Request {
        admission::Request {
            image: types::Image {
                reference: job.image.reference.clone(),
                digest: job.image.digest.clone(),
                size_bytes: job.image.size_bytes,
            },
            argv: job.argv.clone(),
            env: job.env.clone(),
            cwd: job.cwd.clone(),
            user: job.user.clone(),
            limits: (&job.limits).into(),
            requested_limits: (&job.requested_limits).into(),
            network: job.network.clone(),
            writable: job.writable.iter().map(types::Writable::from).collect(),
            artifacts: job.artifacts.clone(),
            files: job
                .files
                .iter()
                .map(|file| types::File { path: file.path.clone(), size_bytes: file.size_bytes })
                .collect(),
            stdin_bytes: job.stdin_bytes,
            labels: job.labels.clone(),
            priority: job.priority,
            token: job.token.clone(),
            extensions: Vec::new(),
        }
    }
}

impl From<&AdmissionLimits> for types::Limits {
    fn from(limits: &AdmissionLimits) -> types::Limits {
        types::Limits {
            memory_bytes: limits.memory_bytes,
            cpu_milli: limits.cpu_milli,
            pids: limits.pids,
            cpu_time_ms: limits.cpu_time_ms,
            wall_time_ms: limits.wall_time_ms,
            open_files: limits.open_files,
            file_bytes: limits.file_bytes,
            output_bytes: limits.output_bytes,
            output_total_bytes: limits.output_total_bytes,
        }
    }
}

impl From<&RequestedLimits> for types::RequestedLimits {
    fn from(limits: &RequestedLimits) -> types::RequestedLimits {
        types::RequestedLimits {
            memory_bytes: limits.memory_bytes,
            cpu_milli: limits.cpu_milli,
            pids: limits.pids,
            cpu_time_ms: limits.cpu_time_ms,
            wall_time_ms: limits.wall_time_ms,
            open_files: limits.open_files,
            file_bytes: limits.file_bytes,
            output_bytes: limits.output_bytes,
            output_total_bytes: limits.output_total_bytes,
        }
    }
}

impl From<&AdmissionWritable> for types::Writable {
    fn from(writable: &AdmissionWritable) -> types::Writable {
        types::Writable { path: writable.path.clone(), size_bytes: writable.size_bytes, inodes: writable.inodes }
    }
}

/// Takes over an answer.
///
/// # Errors
/// A change of a later contract that this host does not know.
pub(crate) fn answer(verdict: admission::Verdict) -> Result<Answer, String> {
    let warnings =
        verdict.warnings.into_iter().map(|warning| Warning { code: warning.code, message: warning.message }).collect();
    let verdict = match verdict.decision {
        admission::Decision::Allow => Verdict::Allow,
        admission::Decision::Deny(refusal) => {
            Verdict::Deny(Refusal { code: refusal.code, reason: refusal.reason, hint: refusal.hint })
        }
        admission::Decision::Change(changes) => {
            Verdict::Change(changes.into_iter().map(change).collect::<Result<_, String>>()?)
        }
    };
    Ok(Answer { verdict, warnings })
}

fn change(change: admission::Change) -> Result<Change, String> {
    use admission::Change as From;
    Ok(match change {
        From::SetLimit((name, value)) => Change::SetLimit { name: name.into(), value },
        From::SetArgv(argv) => Change::SetArgv(argv),
        From::SetUser(user) => Change::SetUser(user),
        From::SetCwd(cwd) => Change::SetCwd(cwd),
        From::SetEnv((name, value)) => Change::SetEnv { name, value },
        From::RemoveEnv(name) => Change::RemoveEnv(name),
        From::SetLabel((name, value)) => Change::SetLabel { name, value },
        From::RemoveLabel(name) => Change::RemoveLabel(name),
        From::SetPriority(priority) => Change::SetPriority(priority),
        From::SetNetwork(network) => Change::SetNetwork(network),
        From::SetWritable(writable) => Change::SetWritable(AdmissionWritable {
            path: writable.path,
            size_bytes: writable.size_bytes,
            inodes: writable.inodes,
        }),
        From::RemoveWritable(path) => Change::RemoveWritable(path),
        From::Other((name, _)) => return Err(format!("this host knows no change `{name:.80}`")),
    })
}

impl From<types::Limit> for LimitName {
    fn from(limit: types::Limit) -> LimitName {
        match limit {
            types::Limit::MemoryBytes => LimitName::MemoryBytes,
            types::Limit::CpuMilli => LimitName::CpuMilli,
            types::Limit::Pids => LimitName::Pids,
            types::Limit::CpuTimeMs => LimitName::CpuTimeMs,
            types::Limit::WallTimeMs => LimitName::WallTimeMs,
            types::Limit::OpenFiles => LimitName::OpenFiles,
            types::Limit::FileBytes => LimitName::FileBytes,
            types::Limit::OutputBytes => LimitName::OutputBytes,
            types::Limit::OutputTotalBytes => LimitName::OutputTotalBytes,
        }
    }
}
