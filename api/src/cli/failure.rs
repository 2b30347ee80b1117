//! How failures are told on standard error: `error: …`, its causes, and what the reader can do as `hint: …`.

use std::io::{self, Write};

use ampoule_client::ClientError;
use ampoule_client::client::ConnectionError;
use anyhow::Error;

/// Tells a failure with its causes.
pub(super) fn print(error: &Error) {
    // Nobody can be told that standard error is gone.
    let _ = io::stderr().write_all(told(error).as_bytes());
}

/// Whether whoever read our output went away, which is no failure to be told.
pub(super) fn is_closed_pipe(error: &Error) -> bool {
    // Only our own writes are looked at: a connection that broke is deeper in the chain, and is a failure.
    error.is::<ClosedPipe>()
        || error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Standard output or standard error was closed by its reader.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub(super) struct ClosedPipe;

fn told(error: &Error) -> String {
    let mut lines = Vec::new();
    let mut hints = Vec::new();
    for cause in error.chain() {
        // A message may carry its own hint in a second line.
        let message = cause.to_string();
        let (message, hint) = message.split_once("\nhint: ").unwrap_or((&message, ""));
        let word = if lines.is_empty() { "error" } else { "  because" };
        // A transparent error repeats its source.
        if lines.last().is_none_or(|last: &String| !last.ends_with(&format!(": {message}"))) {
            lines.push(format!("{word}: {message}"));
        }
        lines.extend(refused_by(cause));
        hints.extend((!hint.is_empty()).then(|| hint.to_owned()));
        hints.extend(hint_for(cause));
    }
    lines.extend(hints.first().map(|hint| format!("hint: {hint}")));
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

/// Which policy it was, when one refused; its decision is with the job.
fn refused_by(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    let Some(ClientError::Refused { problem, .. }) = cause.downcast_ref::<ClientError>() else { return None };
    let policy = problem.policy.as_ref()?;
    let code = problem.policy_code.as_ref().map_or(String::new(), |code| format!(" ({code})"));
    let job = problem.job_id.as_ref().map_or(String::new(), |id| format!(", see `ampoule inspect {id}`"));
    Some(format!("  refused by: policy {policy}{code}{job}"))
}

/// A hint for causes that do not know that they are told on a command line.
fn hint_for(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    let connection = match cause.downcast_ref::<ClientError>() {
        Some(ClientError::Refused { problem, .. }) => return problem.hint.clone(),
        Some(ClientError::Connection(connection)) => Some(connection),
        _ => cause.downcast_ref::<ConnectionError>(),
    };
    let Some(ConnectionError::Connect { endpoint, source }) = connection else { return None };
    let hint = match source.kind() {
        io::ErrorKind::PermissionDenied => {
            let path = endpoint.trim_start_matches("unix://");
            format!("only its group may use the socket: see `ls -l {path}`, or run this as root")
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "start the service with `sudo ampoule serve`, or name another address with --host or AMPOULE_HOST"
                .to_owned()
        }
        // So rustls tells of a certificate that it does not trust.
        io::ErrorKind::InvalidData => {
            "name a file with its certificate, or its authority's, in --ca or AMPOULE_CA".to_owned()
        }
        _ => return None,
    };
    Some(hint)
}

#[cfg(test)]
mod tests {
    use ampoule_client::types::Problem;

    use super::*;

    fn connect(kind: io::ErrorKind) -> Error {
        let source = io::Error::from(kind);
        ClientError::from(ConnectionError::Connect { endpoint: "unix:///run/a.sock".to_owned(), source }).into()
    }

    #[test]
    fn a_service_that_is_not_there_is_told_with_the_way_to_start_it() {
        assert_eq!(
            told(&connect(io::ErrorKind::NotFound)),
            "error: could not connect to unix:///run/a.sock\n  because: entity not found\n\
             hint: start the service with `sudo ampoule serve`, or name another address with --host or AMPOULE_HOST\n"
        );
        assert!(told(&connect(io::ErrorKind::PermissionDenied)).contains("ls -l /run/a.sock"));
    }

    fn problem(policy: Option<&str>) -> Problem {
        Problem {
            kind: "urn:ampoule:problem:image-not-found".to_owned(),
            title: "Image not found".to_owned(),
            status: 404,
            code: "image-not-found".to_owned(),
            detail: "there is no image `foo`".to_owned(),
            hint: Some("see `ampoule image ls`".to_owned()),
            field: None,
            policy: policy.map(str::to_owned),
            policy_code: policy.map(|_| "image-unknown".to_owned()),
            job_id: policy.map(|_| "j1".to_owned()),
            request_id: None,
        }
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_service() {
        let error = Error::from(ClientError::Refused { problem: Box::new(problem(None)), retry_after: None });
        assert_eq!(told(&error), "error: there is no image `foo`\nhint: see `ampoule image ls`\n");
    }

    #[test]
    fn a_policy_that_refused_is_named() {
        let error =
            Error::from(ClientError::Refused { problem: Box::new(problem(Some("baseline"))), retry_after: None });
        let expected = "error: there is no image `foo`\n  refused by: policy baseline (image-unknown), \
                        see `ampoule inspect j1`\nhint: see `ampoule image ls`\n";
        assert_eq!(told(&error), expected);
    }

    #[test]
    fn hints_in_messages_become_the_last_line() {
        let error = Error::msg("no\nhint: try again").context("could not do it");
        assert_eq!(told(&error), "error: could not do it\n  because: no\nhint: try again\n");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure_but_a_broken_connection_is() {
        assert!(is_closed_pipe(&Error::from(io::Error::from(io::ErrorKind::BrokenPipe))));
        assert!(!is_closed_pipe(&connect(io::ErrorKind::BrokenPipe)));
    }
}
