//! The log: lines on standard error, for people or as JSON, filtered by `AMPOULE_LOG`.

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// What is logged when `AMPOULE_LOG` does not say.
const DEFAULT_FILTER: &str = "info";

/// Starts logging. A second call does nothing.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("AMPOULE_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Only a logger that is there already can fail this, and that one goes on.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
