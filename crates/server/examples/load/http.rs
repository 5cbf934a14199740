//! A client as small as HTTP/1.1 allows (RFC 9112). It bounds what it waits for, and can let a connection go at any
//! point.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Bytes of a line, a chunk or a body that are taken at most.
const MOST_BYTES: usize = 256 << 20;

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// Lines, each with its end.
    pub(crate) headers: &'static str,
    pub(crate) body: Vec<u8>,
}

impl Wire {
    pub(crate) fn get(path: &'static str) -> Wire {
        Wire { method: "GET", path, headers: "", body: Vec::new() }
    }

    pub(crate) fn post(path: &'static str, body: impl Into<Vec<u8>>) -> Wire {
        Wire { method: "POST", path, headers: "content-type: application/json\r\n", body: body.into() }
    }

    fn head(&self) -> String {
        let Wire { method, path, headers, body } = self;
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {}\r\n\r\n", body.len())
    }
}

/// One client with one connection at most.
pub(crate) struct Client {
    address: SocketAddr,
    /// For a whole answer; nothing is read for longer.
    patience: Duration,
    kept: Option<BufReader<TcpStream>>,
}

/// An answer whose head is read. Dropped, it closes the connection.
pub(crate) struct Incoming {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
    left: Left,
    deadline: Instant,
}

/// What follows.
enum Left {
    Chunks,
    Bytes(usize),
    Nothing,
}

/// A whole answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

fn broken(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

/// A connection that does not wait longer than `patience` for a byte.
pub(crate) fn connect(address: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

impl Client {
    pub(crate) fn new(address: SocketAddr, patience: Duration) -> Client {
        Client { address, patience, kept: None }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a request and waits for nothing.
    pub(crate) fn send(&mut self, wire: &Wire) -> io::Result<TcpStream> {
        let mut stream = connect(self.address, self.patience)?;
        stream.write_all(wire.head().as_bytes())?;
        stream.write_all(&wire.body)?;
        Ok(stream)
    }

    /// Sends a request and reads the head of the answer, on the connection of the last one where that is still there.
    pub(crate) fn open(&mut self, wire: &Wire) -> io::Result<Incoming> {
        if let Some(kept) = self.kept.take()
            && let Ok(incoming) = self.open_on(kept, wire)
        {
            return Ok(incoming);
        }
        // The server may have closed the kept one meanwhile: only a new one counts.
        let stream = BufReader::new(connect(self.address, self.patience)?);
        self.open_on(stream, wire)
    }

    fn open_on(&self, mut stream: BufReader<TcpStream>, wire: &Wire) -> io::Result<Incoming> {
        stream.get_mut().write_all(wire.head().as_bytes())?;
        // A server that refuses a body may stop reading it: what it says counts.
        let sent = stream.get_mut().write_all(&wire.body);
        Incoming::read_head(stream, Instant::now() + self.patience).or_else(|error| sent.and(Err(error)))
    }

    /// Sends a request and reads the answer.
    pub(crate) fn ask(&mut self, wire: &Wire) -> io::Result<Reply> {
        let incoming = self.open(wire)?;
        self.finish(incoming)
    }

    /// Reads what is left of an answer, and keeps the connection.
    pub(crate) fn finish(&mut self, mut incoming: Incoming) -> io::Result<Reply> {
        let mut body = Vec::new();
        while let Some(bytes) = incoming.next()? {
            body.extend(bytes);
        }
        let Incoming { status, headers, stream, .. } = incoming;
        if find(&headers, "connection") != Some("close") {
            self.kept = Some(stream);
        }
        Ok(Reply { status, headers, body })
    }
}

fn find<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

impl Incoming {
    pub(crate) fn read_head(mut stream: BufReader<TcpStream>, deadline: Instant) -> io::Result<Incoming> {
        let first = line(&mut stream)?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| broken(format!("no status in {first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = line(&mut stream)?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let left = match (find(&headers, "transfer-encoding"), find(&headers, "content-length")) {
            (Some("chunked"), _) => Left::Chunks,
            (_, Some(length)) => Left::Bytes(length.parse().map_err(|_| broken("a length that is none"))?),
            _ => Left::Nothing,
        };
        Ok(Incoming { status, headers, stream, left, deadline })
    }

    /// The next bytes of the body; `None` at its end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if Instant::now() > self.deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the answer has no end"));
        }
        let size = match self.left {
            Left::Nothing => return Ok(None),
            Left::Bytes(size) => size,
            Left::Chunks => {
                let size = line(&mut self.stream)?;
                usize::from_str_radix(&size, 16).map_err(|_| broken(format!("no size of a chunk: {size:?}")))?
            }
        };
        if size > MOST_BYTES {
            return Err(broken(format!("{size} bytes at once")));
        }
        let mut bytes = vec![0; size];
        self.stream.read_exact(&mut bytes)?;
        match self.left {
            Left::Chunks if !line(&mut self.stream)?.is_empty() => return Err(broken("a chunk without an end")),
            Left::Chunks if size > 0 => {}
            _ => self.left = Left::Nothing,
        }
        Ok((size > 0).then_some(bytes))
    }
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    stream.by_ref().take(64 << 10).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended"));
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
