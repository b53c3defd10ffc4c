//! The lists of jobs that a client asks for: one at a time from the record, and
//! part by part to the client, as it reads them. So however many it asks for, no
//! more than one list is in memory.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bowline_proto::limits::JOBS_PER_MESSAGE_MAX;
use bowline_proto::message::{JobRow, Jobs, List};
use tokio::sync::oneshot;

use super::super::record::{Row, Wanted};
use super::{Authenticated, Connection, Phase, job_row};

/// Lists of one connection that are not answered yet.
const LISTS_MAX: usize = 4;
/// Jobs in one answer, where the client does not say.
const LIST_COUNT: u32 = 50;
/// Jobs in one answer at most.
const LIST_COUNT_MAX: u32 = 10_000;

/// The lists of one connection.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Those whose turn has not come.
    asked: VecDeque<Wanted>,
    current: Option<Current>,
}

#[derive(Debug)]
enum Current {
    Reading(oneshot::Receiver<Vec<Row>>),
    Sending(std::vec::IntoIter<Row>),
}

impl Connection {
    pub(super) fn list(&mut self, Authenticated(granted): &Authenticated, list: &List) {
        let open = self.lists.asked.len() + usize::from(self.lists.current.is_some());
        if open >= LISTS_MAX {
            self.refuse("too_many_requests", "too many lists are asked for at once");
            return;
        }
        let count = match list.count {
            0 => LIST_COUNT,
            count => count.min(LIST_COUNT_MAX),
        };
        self.lists.asked.push_back(Wanted {
            user: granted.user.clone(),
            ended: list.ended,
            count,
            prefix: list.job.clone().unwrap_or_default(),
        });
    }

    /// Goes on with the answers to lists. Says whether anything moved.
    pub(super) fn answers(&mut self, cx: &mut Context<'_>) -> bool {
        let Phase::Open(session, _) = &mut self.phase else {
            return false;
        };
        if session.outbox().control_is_full() {
            return false;
        }
        let shared = &self.worker.shared;
        self.lists.current = match self.lists.current.take() {
            None => {
                let Some(wanted) = self.lists.asked.pop_front() else {
                    return false;
                };
                Some(Current::Reading(shared.recorder.list(wanted)))
            }
            Some(Current::Reading(mut rows)) => match Pin::new(&mut rows).poll(cx) {
                Poll::Pending => {
                    self.lists.current = Some(Current::Reading(rows));
                    return false;
                }
                Poll::Ready(rows) => Some(Current::Sending(rows.unwrap_or_default().into_iter())),
            },
            Some(Current::Sending(mut rows)) => {
                let part = rows.by_ref().take(JOBS_PER_MESSAGE_MAX);
                let jobs: Vec<JobRow> = part.map(|row| job_row(row, shared)).collect();
                let more = rows.len() > 0;
                session.jobs(&Jobs { jobs, more });
                more.then_some(Current::Sending(rows))
            }
        };
        true
    }
}
