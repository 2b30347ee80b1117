//! Jobs as they travel, made from jobs as they are.

use std::collections::BTreeMap;

use ampoule_client::types::{self, ArtifactsRequest, JobSpec, JobState, JobSummary, Limits, Times, Writable};
use ampoule_plugins::{AdmissionLimits, Outcome, VerdictKind};

use super::job::{Book, Job, Record, Spec, Status, output};
use super::store::Listed;

/// All that is known of a job.
pub fn job(job: &Job) -> types::Job {
    let status = job.status.borrow().clone();
    let record = &job.record;
    let conclusion = status.conclusion.as_deref();
    let (stdout, stderr) = match (&*job.book(), conclusion) {
        (Book::Closed { stdout, stderr, .. }, Some(ended)) => (
            ended.stdout.as_ref().map(|about| output(about, &stdout.bytes)),
            ended.stderr.as_ref().map(|about| output(about, &stderr.bytes)),
        ),
        _ => (None, None),
    };
    types::Job {
        id: record.id.to_string(),
        name: record.name.clone(),
        state: status.state,
        image: record.image.clone(),
        ending: conclusion.map(|ended| ended.ending.clone()),
        stdout,
        stderr,
        artifacts: conclusion.map(|ended| ended.artifacts.clone()).unwrap_or_default(),
        figures: conclusion.and_then(|ended| ended.figures),
        phases: conclusion.and_then(|ended| ended.phases),
        times: times(record, &status),
        attempt: status.attempt,
        retries: record.retries,
        priority: record.priority,
        token: record.token.clone(),
        labels: record.labels.clone(),
        decision: Some(record.decision.clone()),
        spec: Some(spec(&record.spec)),
    }
}

/// A job for a list.
pub fn summary(listed: &Listed) -> JobSummary {
    let Listed { record, status } = listed;
    JobSummary {
        id: record.id.to_string(),
        name: record.name.clone(),
        state: status.state,
        image: record.image.clone(),
        argv: record.spec.argv.clone(),
        ending: status.conclusion.as_deref().map(|ended| ended.ending.clone()),
        times: times(record, status),
        priority: record.priority,
        token: record.token.clone(),
        labels: record.labels.clone(),
    }
}

fn times(record: &Record, status: &Status) -> Times {
    let started = status.started.filter(|_| status.state != JobState::Queued);
    Times { created: record.created, started, ended: status.ended, deadline: record.deadline }
}

fn spec(spec: &Spec) -> JobSpec {
    let artifacts = ArtifactsRequest {
        globs: spec.artifacts.globs.clone(),
        file_bytes_max: Some(spec.artifacts.file_bytes_max),
        total_bytes_max: Some(spec.artifacts.total_bytes_max),
        files_max: Some(spec.artifacts.files_max),
    };
    let writable = spec.writable.iter().map(|place| Writable {
        path: place.path.clone(),
        size_bytes: place.size_bytes,
        inodes: Some(place.inodes),
    });
    JobSpec {
        image_digest: spec.image_digest.clone(),
        argv: spec.argv.clone(),
        env: spec.env.iter().cloned().collect::<BTreeMap<_, _>>(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        limits: limits(&spec.limits),
        network: spec.network.clone(),
        writable: writable.collect(),
        artifacts: (!artifacts.globs.is_empty()).then_some(artifacts),
        files: spec.files.clone(),
        stdin_bytes: spec.stdin_bytes,
    }
}

fn limits(limits: &AdmissionLimits) -> Limits {
    Limits {
        memory_bytes: limits.memory_bytes,
        cpus: f64::from(limits.cpu_milli) / 1000.0,
        pids: limits.pids,
        cpu_time_ms: limits.cpu_time_ms,
        wall_time_ms: limits.wall_time_ms,
        open_files: limits.open_files,
        file_bytes: limits.file_bytes,
        output_bytes: limits.output_bytes,
        output_total_bytes: limits.output_total_bytes,
    }
}

/// A decision without the admission that it let in: the spec says what came of that.
pub fn decision(decision: &ampoule_plugins::Decision) -> types::Decision {
    let (outcome, denial) = match &decision.outcome {
        Outcome::Admitted(_) => (types::Outcome::Admitted, None),
        Outcome::Denied(denial) => (
            types::Outcome::Denied,
            Some(types::Denial {
                policy: denial.policy.clone(),
                code: denial.code.clone(),
                reason: denial.reason.clone(),
                hint: some(&denial.hint),
            }),
        ),
    };
    let warning = |warning: &ampoule_plugins::PolicyWarning| types::PolicyWarning {
        policy: warning.policy.clone(),
        code: warning.code.clone(),
        message: warning.message.clone(),
    };
    types::Decision {
        outcome,
        denial,
        warnings: decision.warnings.iter().map(warning).collect(),
        verdicts: decision.verdicts.iter().map(verdict).collect(),
    }
}

fn verdict(verdict: &ampoule_plugins::PolicyVerdict) -> types::Verdict {
    let word = match verdict.verdict {
        VerdictKind::Allow => "allow",
        VerdictKind::Deny => "deny",
        VerdictKind::Change => "change",
        VerdictKind::Error => "error",
    };
    types::Verdict {
        policy: verdict.policy.clone(),
        digest: verdict.digest.clone(),
        mode: crate::policies::mode(verdict.mode).to_owned(),
        verdict: word.to_owned(),
        changed: verdict.changed.clone(),
        code: some(&verdict.code),
        reason: some(&verdict.reason),
        fuel: verdict.fuel,
        micros: verdict.micros,
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
