/* nng_link: one end of a link whose two ends share no memory: it keeps private copies in step.
 *
 * Each end has link memory of the same layout (exchange/link.h), and two threads: the sender waits
 * for the compute thread to fill a place, makes one message of it and sends it; the receiver checks
 * each message, stores it in its place, sets the sequence word and rings the compute thread's
 * doorbell. So compute threads see the protocol of a place, whatever carries it.
 *
 * The worker listens, the router dials.  The first bytes on a connection are a hello with the key
 * of the offer; a connection that does not begin so is closed, and the next one is accepted.  After
 * the first good hello nobody else can connect.  A connection is never repaired: once broken, the
 * link is.
 *
 * Messages are framed on nng's byte streams, not on its SP sockets: they need no queue, pattern or
 * reconnect, a stream allocates nothing whose size a peer chooses, and a round trip takes half the
 * time.  ipc:// sockets get mode 0600.
 *
 * Threads: listen, dial and close from the control thread.
 */
#ifndef MOE_EXCHANGE_NNG_LINK_H
#define MOE_EXCHANGE_NNG_LINK_H

#include "exchange/attach.h"

typedef struct nng_link nng_link;

/* Everything is borrowed until close, but the key. */
typedef struct nng_link_config {
    const link_memory *memory;
    uint32_t router_id;
    uint64_t incarnation; /* of the router */
    unsigned char key[EXCHANGE_KEY_BYTES];
    _Atomic uint32_t *send_bell; /* rung by the compute thread: a place is filled */
    _Atomic uint32_t *arrived;   /* rung here: a message is stored, or the connection broke */
    _Atomic bool *broken;        /* set here, before `arrived` is rung */
} nng_link_config;

/* Worker's end.  bound_url: the URL to dial, with the port that the OS chose for port 0.
 *   MOE_EIO     nng's reason
 *   MOE_ENOMEM  */
moe_err nng_link_listen(nng_link **out, const nng_link_config *config, const char *url,
                        char bound_url[EXCHANGE_URL_MAX], errbuf *eb);

/* Router's end: connect, say hello, wait for the answer.
 *   MOE_EIO        nng's reason
 *   MOE_EPERM      the other end closed the connection at the hello
 *   MOE_ETIMEDOUT  no answer in timeout_ms
 *   MOE_ENOMEM  */
moe_err nng_link_dial(nng_link **out, const nng_link_config *config, const char *url,
                      uint32_t timeout_ms, errbuf *eb);

/* Close the connection and end the threads; afterwards the memory is not touched.  Accepts NULL. */
void nng_link_close(nng_link *nl);

#endif
