//! Perfetto encoding: a stream of packets, each a track descriptor or an event on a track.
//!
//! Only the messages and fields that we write are declared. Their numbers are those of Perfetto's
//! protobuf definitions.
//!
//! Source: perfetto.dev, "Synthetic Track Event"; `protos/perfetto/trace/trace_packet.proto`,
//! `track_event/track_event.proto`, `track_event/track_descriptor.proto`, `clock_snapshot.proto`.

use prost::Message;

use super::{Trace, What};

/// Sequence ID of all packets.
const SEQUENCE: u32 = 1;
/// `SequenceFlags.SEQ_INCREMENTAL_STATE_CLEARED`, in the first packet of the sequence.
const SEQUENCE_BEGINS: u32 = 1;

/// `BuiltinClock`: timestamps are of `MONOTONIC`; viewers use `BOOTTIME` as the time of a trace.
const MONOTONIC: u32 = 3;
const BOOT_TIME: u32 = 6;

/// `TrackEvent.Type`.
const SLICE_BEGIN: i32 = 1;
const SLICE_END: i32 = 2;
const INSTANT: i32 = 3;
const COUNTER: i32 = 4;

/// `TrackDescriptor.ChildTracksOrdering.EXPLICIT`: children appear in the order of their ranks.
const EXPLICIT: i32 = 3;

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(message, repeated, tag = "1")]
    packet: Vec<Packet>,
}

#[derive(Clone, PartialEq, Message)]
struct Packet {
    #[prost(message, optional, tag = "6")]
    clock_snapshot: Option<ClockSnapshot>,
    #[prost(uint64, optional, tag = "8")]
    timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "10")]
    trusted_packet_sequence_id: Option<u32>,
    #[prost(message, optional, tag = "11")]
    track_event: Option<TrackEvent>,
    #[prost(uint32, optional, tag = "13")]
    sequence_flags: Option<u32>,
    #[prost(uint32, optional, tag = "58")]
    timestamp_clock_id: Option<u32>,
    #[prost(message, optional, tag = "60")]
    track_descriptor: Option<TrackDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct ClockSnapshot {
    #[prost(message, repeated, tag = "1")]
    clocks: Vec<Clock>,
}

#[derive(Clone, PartialEq, Message)]
struct Clock {
    #[prost(uint32, optional, tag = "1")]
    clock_id: Option<u32>,
    #[prost(uint64, optional, tag = "2")]
    timestamp: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct TrackEvent {
    #[prost(int32, optional, tag = "9")]
    r#type: Option<i32>,
    #[prost(uint64, optional, tag = "11")]
    track_uuid: Option<u64>,
    #[prost(string, optional, tag = "23")]
    name: Option<String>,
    #[prost(int64, optional, tag = "30")]
    counter_value: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct TrackDescriptor {
    #[prost(uint64, optional, tag = "1")]
    uuid: Option<u64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
    #[prost(uint64, optional, tag = "5")]
    parent_uuid: Option<u64>,
    #[prost(message, optional, tag = "8")]
    counter: Option<CounterDescriptor>,
    #[prost(int32, optional, tag = "11")]
    child_ordering: Option<i32>,
    #[prost(int32, optional, tag = "12")]
    sibling_order_rank: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct CounterDescriptor {
    #[prost(string, optional, tag = "6")]
    unit_name: Option<String>,
}

/// UUID of a track. 0 is reserved for the trace.
fn uuid(track: usize) -> u64 {
    track as u64 + 1
}

/// Encodes `trace` as the contents of a `.pftrace` file.
pub fn encode(trace: &Trace) -> Vec<u8> {
    let begin = trace.events.first().map_or(0, |event| event.at);
    let clock = |clock_id| Clock { clock_id: Some(clock_id), timestamp: Some(begin) };
    let mut packet = vec![Packet {
        clock_snapshot: Some(ClockSnapshot { clocks: vec![clock(MONOTONIC), clock(BOOT_TIME)] }),
        trusted_packet_sequence_id: Some(SEQUENCE),
        sequence_flags: Some(SEQUENCE_BEGINS),
        ..Packet::default()
    }];
    packet.extend(trace.tracks.iter().enumerate().map(|(index, track)| Packet {
        trusted_packet_sequence_id: Some(SEQUENCE),
        track_descriptor: Some(TrackDescriptor {
            uuid: Some(uuid(index)),
            name: Some(track.name.clone()),
            parent_uuid: track.parent.map(uuid),
            counter: track.unit.map(|unit| CounterDescriptor { unit_name: Some(unit.to_owned()) }),
            child_ordering: Some(EXPLICIT),
            sibling_order_rank: i32::try_from(index).ok(),
        }),
        ..Packet::default()
    }));
    packet.extend(trace.events.iter().map(|event| {
        let (kind, name, counter_value) = match &event.what {
            What::Begin(name) => (SLICE_BEGIN, Some(name.clone()), None),
            What::End => (SLICE_END, None, None),
            What::Instant(name) => (INSTANT, Some((*name).to_owned()), None),
            What::Count(value) => (COUNTER, None, Some(*value)),
        };
        Packet {
            timestamp: Some(event.at),
            timestamp_clock_id: Some(MONOTONIC),
            trusted_packet_sequence_id: Some(SEQUENCE),
            track_event: Some(TrackEvent {
                r#type: Some(kind),
                track_uuid: Some(uuid(event.track)),
                name,
                counter_value,
            }),
            ..Packet::default()
        }
    }));
    File { packet }.encode_to_vec()
}
