//! The events of a job, read from the wire by hand.

use ampoule_client::types::Event;

use crate::Service;

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// Its id, which `Last-Event-ID` takes.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its data.
    pub data: Event,
}

/// All events of a job up to its end; from its start, or after the event named.
///
/// # Panics
/// When the service does not send events.
pub fn events(service: &Service, job: &str, after: Option<&str>) -> impl Iterator<Item = Sent> {
    let mut headers = vec![("accept", "text/event-stream")];
    headers.extend(after.map(|id| ("last-event-id", id)));
    let stream = service.connect().stream("GET", &format!("/v1/jobs/{job}/events"), &headers).expect("it answers");
    assert_eq!(stream.status, 200);
    let mut lines = stream.lines();
    std::iter::from_fn(move || {
        let (mut id, mut name, mut data) = (String::new(), String::new(), String::new());
        loop {
            let line = lines.next()?.expect("the stream ends after the last event only");
            match line.split_once(": ") {
                Some(("id", value)) => id = value.to_owned(),
                Some(("event", value)) => name = value.to_owned(),
                Some(("data", value)) => data.push_str(value),
                // An empty line ends an event; a comment keeps the connection alive.
                _ if !line.is_empty() || data.is_empty() => {}
                _ => {
                    let data = serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error}: {data}"));
                    return Some(Sent { id, name, data });
                }
            }
        }
    })
}
