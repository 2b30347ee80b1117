//! Ports of EXPOSE: `80`, `53/udp`, `8000-8010`; the forms with an address or a port of the host are read as well.

/// What one port of EXPOSE says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// `80/tcp`, one each.
    pub(super) ports: Vec<String>,
    /// Whether an address or a port of the host was named.
    pub(super) has_mapping: bool,
    /// Whether the protocol was not in lower case.
    pub(super) has_upper_case: bool,
}

/// Reads a port; the sentence says why it is none.
///
/// # Errors
/// Anything that is no port.
pub(super) fn parse(text: &str) -> Result<Ports, &'static str> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let lower = protocol.to_ascii_lowercase();
    if !matches!(lower.as_str(), "tcp" | "udp" | "sctp") {
        return Err("its protocol is neither tcp, udp nor sctp");
    }
    let (rest, container) = ports.rsplit_once(':').map_or((None, ports), |(rest, container)| (Some(rest), container));
    if let Some(rest) = rest {
        let (address, host) = rest.rsplit_once(':').map_or((None, rest), |(address, host)| (Some(address), host));
        if !host.is_empty() {
            range(host)?;
        }
        if let Some(address) = address {
            let bare = address.trim_start_matches('[').trim_end_matches(']');
            bare.parse::<std::net::IpAddr>().map_err(|_| "its address is none")?;
        }
    }
    let (first, last) = range(container)?;
    let ports = (first..=last).map(|port| format!("{port}/{lower}")).collect();
    Ok(Ports { ports, has_mapping: rest.is_some(), has_upper_case: protocol != lower })
}

fn range(text: &str) -> Result<(u16, u16), &'static str> {
    let port = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| is_number).ok_or("a port is a number up to 65535")
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err("its range goes backwards") } else { Ok((first, last)) }
}
