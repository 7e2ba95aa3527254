//! A rehearsal: a policy alone with a clock that is never late, and a guest that says nothing.
//!
//! What a policy decides there is what it would decide if nothing disturbed it: a live run is compared with it, and says how far
//! it has drifted.

use super::board::{Board, Move};
use super::{Cpu, Decision, Event, Ns, Plan, Policy, Vcpu};

/// Somebody else was to run on a CPU, or nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Switch {
    /// When it was decided.
    pub at: Ns,
    /// Where.
    pub cpu: Cpu,
    /// Who; `None` for nobody.
    pub vcpu: Option<Vcpu>,
}

/// The switches that `policy` decides on from `begin` to `end`, on so many CPUs, for guests of so many vCPUs each.
pub fn rehearse(policy: &mut dyn Policy, cpus: usize, guests: &[usize], begin: Ns, end: Ns) -> Vec<Switch> {
    let mut board = Board::new(cpus, guests);
    board.turn_to(begin);
    let (mut switches, mut moves, mut out) = (Vec::new(), Vec::new(), Vec::<Decision>::new());
    let ready = (0..board.scene().vcpus.len()).map(|vcpu| Event::Ready { vcpu });
    let mut events: Vec<_> = ready.chain([Event::Begin]).rev().collect();
    loop {
        let now = board.scene().now;
        let Some(event) = events.pop().or_else(|| board.due(&mut moves)) else {
            note(&mut moves, now, &mut switches);
            match board.next_due().filter(|due| *due < end) {
                Some(due) => board.turn_to(due),
                None => return switches,
            }
            continue;
        };
        out.clear();
        policy.decide(event, board.scene(), &mut out);
        let posted = board.post(now, &out, &mut moves);
        board.settle(event, posted.is_err());
        note(&mut moves, now, &mut switches);
    }
}

fn note(moves: &mut Vec<Move>, at: Ns, switches: &mut Vec<Switch>) {
    for change in moves.drain(..) {
        if let Move::Switch { cpu, to, .. } = change {
            let vcpu = if let Plan::Runs(vcpu) = to { Some(vcpu) } else { None };
            switches.push(Switch { at, cpu, vcpu });
        }
    }
}
