/* attach: what a router and a worker tell each other, over the control plane, to make a link.
 *
 *   1. router  router_end_prepare()   makes the link's memory, fills an attach_offer
 *   2.         control RPC Attach(offer)
 *   3. worker  worker_end_attach()    maps it, or listens; fills an attach_answer
 *   4. router  router_end_complete()  maps the worker's doorbell, or dials
 *
 * Threads: plain data.
 */
#ifndef MOE_EXCHANGE_ATTACH_H
#define MOE_EXCHANGE_ATTACH_H

#include "exchange/link.h"

typedef enum exchange_backend { EXCHANGE_SHM = 0, EXCHANGE_NNG = 1 } exchange_backend;

#define EXCHANGE_URL_MAX 256
#define EXCHANGE_KEY_BYTES 16

typedef struct attach_offer {
    uint32_t router_id;
    uint64_t router_incarnation;
    uint32_t part; /* of what the worker hosts: with TP its slice, else 0.  A router has one link
                      for each */
    exchange_backend backend;
    exchange_limits limits;
    char rows_name[EXCHANGE_NAME_MAX]; /* shm */
    char link_name[EXCHANGE_NAME_MAX]; /* shm */
    unsigned char
        key[EXCHANGE_KEY_BYTES]; /* nng: the first message on the connection must carry it */
} attach_offer;

typedef struct attach_answer {
    char bell_name[EXCHANGE_NAME_MAX]; /* shm */
    char url[EXCHANGE_URL_MAX];        /* nng: where the router is to dial */
} attach_answer;

#endif
