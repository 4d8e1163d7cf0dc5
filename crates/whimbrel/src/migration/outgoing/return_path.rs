//! The return path's thread: hands every message on, and says when there will be no more.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use whimbrel_proto::action::Channel;
use whimbrel_proto::event::Event;
use whimbrel_proto::outcome::Reason;
use whimbrel_wire::{Input, ReturnPathMessage};

use crate::channel::{Link, LinkReader};

/// Starts it. It ends with SHUT, with the link, or when nobody listens any more.
///
/// # Errors
/// If there is no thread to be had.
pub(super) fn start(link: Arc<Link>, post: Sender<Event>) -> std::io::Result<()> {
    std::thread::Builder::new().name("return-path".into()).spawn(move || read(link, &post)).map(drop)
}

fn read(link: Arc<Link>, post: &Sender<Event>) {
    let reader = LinkReader::new(link);
    let patience = reader.patience();
    let mut input = Input::with_capacity(reader, 0);
    loop {
        patience.between_elements();
        let event = match input.at_end() {
            Ok(true) => Event::ChannelLost(Channel::ReturnPath, "Channel error: Input/output error".into()),
            Ok(false) => {
                patience.inside_element();
                match ReturnPathMessage::decode(&mut input, 0) {
                    Ok(message) => Event::Peer(message),
                    Err(error) => Event::ChannelLost(Channel::ReturnPath, Reason(error.to_string())),
                }
            }
            Err(error) => Event::ChannelLost(Channel::ReturnPath, Reason(format!("Channel error: {error}"))),
        };
        let last =
            !matches!(event, Event::Peer(ref message) if !matches!(message, ReturnPathMessage::Shut(_)));
        if post.send(event).is_err() || last {
            return;
        }
    }
}
