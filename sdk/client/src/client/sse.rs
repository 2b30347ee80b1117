//! Server-sent events as the WHATWG writes them, from bytes in any pieces, with a bound on what is kept of them.

use std::mem;

/// Longest line, in bytes: the base64 of a log chunk with room to spare.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// Most bytes of the data of one event.
pub const DATA_BYTES_MAX: usize = 4 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// The last `id:` of the stream so far.
    pub id: Option<String>,
    /// What `event:` said; `message` by default.
    pub event: String,
    /// The `data:` lines, joined by line feeds.
    pub data: String,
}

/// Why a stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A line is longer than `LINE_BYTES_MAX`.
    #[error("a line of the event stream is longer than {LINE_BYTES_MAX} bytes")]
    LongLine,
    /// The data of an event is longer than `DATA_BYTES_MAX`.
    #[error("the data of an event is longer than {DATA_BYTES_MAX} bytes")]
    LongData,
}

/// The state of a stream between two pieces.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    after_return: bool,
    started: bool,
    last_id: Option<String>,
    event: String,
    data: Option<String>,
}

impl SseParser {
    /// A parser at the start of a stream.
    pub fn new() -> SseParser {
        SseParser::default()
    }

    /// Takes the next piece and appends the events that it completes to `events`.
    ///
    /// # Errors
    /// When a bound is passed; the stream must then be given up.
    pub fn push(&mut self, piece: &[u8], events: &mut impl Extend<SseEvent>) -> Result<(), SseError> {
        let mut rest = piece;
        while let Some(&first) = rest.first() {
            // A line ends with a line feed, a carriage return, or both, possibly in two pieces.
            if mem::take(&mut self.after_return) && first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &rest[..end.unwrap_or(rest.len())];
            if self.line.len() + part.len() > LINE_BYTES_MAX {
                return Err(SseError::LongLine);
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { return Ok(()) };
            self.after_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if let Some(event) = self.end_line()? {
                events.extend([event]);
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<Option<SseEvent>, SseError> {
        let line = mem::take(&mut self.line);
        let mut text = String::from_utf8_lossy(&line);
        if !mem::replace(&mut self.started, true) {
            // Only the very start of a stream may have a byte order mark.
            text = text.strip_prefix('\u{feff}').map(|rest| rest.to_owned().into()).unwrap_or(text);
        }
        if text.is_empty() {
            return Ok(self.dispatch());
        }
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        self.take_field(field, value.strip_prefix(' ').unwrap_or(value))?;
        Ok(None)
    }

    fn take_field(&mut self, field: &str, value: &str) -> Result<(), SseError> {
        match field {
            "event" => value.clone_into(&mut self.event),
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            "data" => {
                let data = match self.data.take() {
                    Some(before) => before + "\n" + value,
                    None => value.to_owned(),
                };
                if data.len() > DATA_BYTES_MAX {
                    return Err(SseError::LongData);
                }
                self.data = Some(data);
            }
            // Comments, `retry` and fields that are not known say nothing to us.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        let event = mem::take(&mut self.event);
        let data = self.data.take()?;
        let event = if event.is_empty() { "message".to_owned() } else { event };
        Some(SseEvent { id: self.last_id.clone(), event, data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<SseEvent> {
        let mut parser = SseParser::new();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece, &mut events).expect("within the bounds");
        }
        events
    }

    fn event(id: Option<&str>, event: &str, data: &str) -> SseEvent {
        SseEvent { id: id.map(str::to_owned), event: event.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn fields_comments_and_line_ends_are_read_as_the_standard_says() {
        let stream = b"\xef\xbb\xbf: hello\r\nid: 1\r\nevent: log\r\ndata: a\r\ndata:b\r\n\r\nevent: none\n\ndata\n\ndata:  c\rretry: 5\r\r";
        let expected =
            [event(Some("1"), "log", "a\nb"), event(Some("1"), "message", ""), event(Some("1"), "message", " c")];
        assert_eq!(parse(&[stream]), expected);
    }

    #[test]
    fn an_event_that_is_not_ended_is_not_told() {
        assert_eq!(parse(&[b"data: a\n"]), []);
    }

    #[test]
    fn a_line_and_an_event_have_bounds() {
        let mut parser = SseParser::new();
        let long = vec![b'a'; LINE_BYTES_MAX / 2 + 1];
        let mut events = Vec::new();
        parser.push(&long, &mut events).expect("half a line");
        assert_eq!(parser.push(&long, &mut events), Err(SseError::LongLine));

        let mut parser = SseParser::new();
        let line = [b"data:".as_slice(), &vec![b'a'; LINE_BYTES_MAX - 5], b"\n"].concat();
        let lines = DATA_BYTES_MAX / LINE_BYTES_MAX + 1;
        let result = (0..lines).try_for_each(|_| parser.push(&line, &mut events));
        assert_eq!(result, Err(SseError::LongData));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(stream in "((id|event|data|x)?:? ?[a-c\u{e4}]{0,3}(\r\n|\n|\r)){0,30}", cuts in proptest::collection::vec(0usize..200, 0..6)) {
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(&pieces), parse(&[bytes]));
        }

        #[test]
        fn what_is_written_is_read(events in proptest::collection::vec(("[a-z]{1,8}", "[ -~\u{e4}]{0,20}(\n[ -~]{0,20}){0,3}"), 0..10)) {
            let mut stream = String::new();
            for (number, (name, data)) in events.iter().enumerate() {
                stream += &format!("id: {number}\nevent: {name}\n");
                data.split('\n').for_each(|line| stream += &format!("data: {line}\n"));
                stream += "\n";
            }
            let read = parse(&[stream.as_bytes()]);
            let written: Vec<SseEvent> = events
                .iter()
                .enumerate()
                .map(|(number, (name, data))| event(Some(&number.to_string()), name, data))
                .collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut events = Vec::new();
            prop_assert!(SseParser::new().push(&bytes, &mut events).is_ok());
        }
    }
}
