//! HTTP/1.1 over a unix socket, by hand and blocking: the tests see the very bytes that travel, and no client
//! hides a mistake of the service.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

/// Longest line of a head that is read.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// A kept-alive connection to the service.
pub struct Connection {
    stream: BufReader<UnixStream>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// An answer whose body is read as it comes.
pub struct Streaming {
    /// The HTTP status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    body: Body,
}

impl Connection {
    /// Connects to the service's socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn open(socket: &Path) -> io::Result<Connection> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(crate::patience(Duration::from_secs(120))))?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// The connection ended early, or what came is not HTTP.
    pub fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        self.write(method, target, headers, body)?;
        let (status, headers) = self.read_head()?;
        let mut reader = BodyLength::of(status, &headers)?;
        let mut body = Vec::new();
        let mut part = [0; 16 * 1024];
        loop {
            match reader.read(&mut self.stream, &mut part)? {
                0 => return Ok(Answer { status, headers, body }),
                count => body.extend_from_slice(&part[..count]),
            }
        }
    }

    /// Sends a request and hands the body on as it comes; the connection ends with it.
    ///
    /// # Errors
    /// The connection ended early, or what came is not HTTP.
    pub fn stream(self, method: &str, target: &str, headers: &[(&str, &str)]) -> io::Result<Streaming> {
        self.stream_body(method, target, headers, b"")
    }

    /// Sends a request with a body, and hands that of the answer on as it comes.
    ///
    /// # Errors
    /// The connection ended early, or what came is not HTTP.
    pub fn stream_body(
        mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Streaming> {
        self.write(method, target, headers, body)?;
        let (status, headers) = self.read_head()?;
        let length = BodyLength::of(status, &headers)?;
        Ok(Streaming { status, headers, body: Body { stream: self.stream, length } })
    }

    fn write(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: ampoule\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let mut message = head.into_bytes();
        message.extend_from_slice(body);
        match self.stream.get_mut().write_all(&message) {
            // A service that refuses a long body need not read it to its end: its answer is there all the same.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            written => written,
        }
    }

    fn read_head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let first = read_line(&mut self.stream)?;
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| io::Error::other(format!("not an HTTP answer: `{first}`")))?;
        let mut headers = Vec::new();
        loop {
            let line = read_line(&mut self.stream)?;
            match line.split_once(':') {
                Some((name, value)) => headers.push((name.to_lowercase(), value.trim().to_owned())),
                None => return Ok((status, headers)),
            }
        }
    }
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is something else; the message shows what came.
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("HTTP {} with an unexpected body: {error}\n{}", self.status, self.text()))
    }

    /// Itself, when the status is the expected one.
    ///
    /// # Panics
    /// When it is another one; the message shows the body.
    pub fn expect_status(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }
}

impl Streaming {
    /// The lines of the body as they come.
    pub fn lines(self) -> impl Iterator<Item = io::Result<String>> {
        BufReader::new(self.body).lines()
    }
}

impl Read for Streaming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.body.read(buffer)
    }
}

struct Body {
    stream: BufReader<UnixStream>,
    length: BodyLength,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.length.read(&mut self.stream, buffer)
    }
}

/// What is still to come of a body.
enum BodyLength {
    Known(u64),
    /// Chunked: what is left of the chunk at hand.
    Chunked {
        left: u64,
        begun: bool,
    },
    Ended,
    UntilClose,
}

impl BodyLength {
    fn of(status: u16, headers: &[(String, String)]) -> io::Result<BodyLength> {
        let header = |name: &str| headers.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value);
        if status == 204 || status == 304 {
            Ok(BodyLength::Ended)
        } else if header("transfer-encoding").is_some_and(|value| value == "chunked") {
            Ok(BodyLength::Chunked { left: 0, begun: false })
        } else if let Some(length) = header("content-length") {
            Ok(BodyLength::Known(length.parse().map_err(io::Error::other)?))
        } else {
            Ok(BodyLength::UntilClose)
        }
    }

    fn read(&mut self, stream: &mut BufReader<UnixStream>, buffer: &mut [u8]) -> io::Result<usize> {
        if let BodyLength::Chunked { left: 0, begun } = *self {
            if begun {
                read_line(stream)?;
            }
            let line = read_line(stream)?;
            let length =
                u64::from_str_radix(line.split(';').next().unwrap_or("").trim(), 16).map_err(io::Error::other)?;
            *self = BodyLength::Chunked { left: length, begun: true };
            if length == 0 {
                read_line(stream)?;
                *self = BodyLength::Ended;
            }
        }
        let left = match self {
            BodyLength::Ended => 0,
            BodyLength::Known(left) | BodyLength::Chunked { left, .. } => *left,
            BodyLength::UntilClose => u64::MAX,
        };
        if left == 0 {
            return Ok(0);
        }
        let count = stream.take(left).read(buffer)?;
        match self {
            BodyLength::Known(left) | BodyLength::Chunked { left, .. } if count == 0 => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("the body ended {left} bytes before its end"),
                ));
            }
            BodyLength::Known(left) | BodyLength::Chunked { left, .. } => *left -= count as u64,
            BodyLength::Ended | BodyLength::UntilClose => {}
        }
        Ok(count)
    }
}

fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<String> {
    let mut line = String::new();
    if stream.take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before the answer"));
    }
    Ok(line.trim_end().to_owned())
}
