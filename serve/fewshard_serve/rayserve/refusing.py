"""HAProxy refuses what a model has no room for, before a replica has to read it; put in place by `haproxy`.

A refusal by a replica costs its event loop about as much as an answer does: under twice the load half the
answers were left, and requests waited for seconds to be refused. A replica tells with each answer how much
may be in flight (`http/room`). HAProxy counts that for each model and each caller, and keeps to it by the
rule of `engine/admission`, in requests. The replica has the last word: on items, tokens and rights.

The counters are of one HAProxy. Those of other nodes and of one that is being replaced count for themselves;
what they let through beyond the room, the replica refuses.
"""

from fewshard_serve.engine.admission import FAIR_ALPHA
from fewshard_serve.http.doors import PRIORITY_HEADER
from fewshard_serve.http.room import REFUSED_HEADER, ROOM_HEADER

_ROOM, _REFUSED, _PRIORITY = (each.decode() for each in (ROOM_HEADER, REFUSED_HEADER, PRIORITY_HEADER))
_TOO_MUCH = '{"error":"too much is in flight; retry in %[sc_get_gpt(1,0)] s","code":"overloaded"}'

# Each backend has a table, by model (counter 0) and by caller and model (counter 1). Of a model it also holds
# what a replica told last (gpt), and what was refused and is yet to be told (gpc, by `http.room.PROTOCOLS`).
RULES = f"""\
stick-table type string len 256 size 20k expire 1m store conn_cur,gpc(3),gpt(2)
acl predicts path_end /classify /infer
acl classifies path_end /classify
acl is_binary req.hdr(inference-header-content-length) -m found
acl is_urgent req.hdr({_PRIORITY}) -m str high
http-request track-sc0 path,field(4,/)
http-request set-var(txn.others) sc0_conn_cur,sub(1)
http-request set-var(txn.servers) nbsrv
http-request set-var(txn.free) sc_get_gpt(0,0),mul(txn.servers),sub(txn.others)
http-request set-var-fmt(txn.caller) "%[path,field(4,/)] %[src] %[req.fhdr(authorization),xxh64]" if METH_POST
http-request track-sc1 var(txn.caller) if METH_POST
http-request set-var(txn.fair) var(txn.free),mul({FAIR_ALPHA})
http-request set-var(txn.held) sc1_conn_cur,sub(1)
http-request set-var(txn.excess) var(txn.held),sub(txn.fair)
acl may_refuse sc_get_gpt(0,0) gt 0
acl is_alone var(txn.others) -m int le 0
acl is_full var(txn.free) -m int le 0
acl holds_some var(txn.held) -m int gt 0
acl holds_much var(txn.excess) -m int ge 0
http-request set-var(txn.refused) bool(true) if METH_POST predicts may_refuse !is_alone !is_urgent is_full
http-request set-var(txn.refused) bool(true) if METH_POST predicts may_refuse !is_urgent holds_some holds_much
acl is_refused var(txn.refused) -m bool
http-request sc-inc-gpc(0,0) if is_refused classifies
http-request sc-inc-gpc(1,0) if is_refused !classifies !is_binary
http-request sc-inc-gpc(2,0) if is_refused !classifies is_binary
http-request set-header x-request-id %[uuid] if is_refused !{{ req.hdr(x-request-id) -m found }}
http-request return status 429 content-type application/json hdr retry-after %[sc_get_gpt(1,0)] \
hdr x-request-id %[req.fhdr(x-request-id)] lf-string '{_TOO_MUCH}' if is_refused
http-request set-header {_REFUSED} %[sc_clr_gpc(0,0)]/%[sc_clr_gpc(1,0)]/%[sc_clr_gpc(2,0)]
acl tells_room res.hdr({_ROOM}) -m found
http-response sc-set-gpt(0,0) res.fhdr({_ROOM}),field(1,/) if tells_room
http-response sc-set-gpt(1,0) res.fhdr({_ROOM}),field(2,/) if tells_room
http-response del-header {_ROOM}
"""
"""For the backend of a host, one a line."""
