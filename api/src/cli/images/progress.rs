//! How far a transfer is: a bar where standard error is a terminal, and nothing in a pipe.

use std::pin::Pin;
use std::task::{Context, Poll};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::io::{AsyncRead, ReadBuf};

/// How often a bar is drawn, a second.
const DRAWN_PER_SECOND: u8 = 10;

/// A bar for so many bytes, or for a number that nobody knows. It vanishes with its last clone.
pub(super) fn bar(what: &'static str, length: Option<u64>) -> ProgressBar {
    let target = ProgressDrawTarget::stderr_with_hz(DRAWN_PER_SECOND);
    let template = match length {
        Some(_) => "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        None => "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(length, target).with_style(style).with_message(what)
}

/// A reader that moves a bar.
pub(super) struct Watched<R> {
    pub(super) input: R,
    pub(super) bar: ProgressBar,
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.input).poll_read(context, buffer);
        self.bar.inc((buffer.filled().len() - before) as u64);
        if matches!(polled, Poll::Ready(Ok(()))) && buffer.filled().len() == before {
            // All is sent; the service unpacks, and a bar that stands still at its end would look like a fault.
            self.bar.set_message("unpacking");
        }
        polled
    }
}
