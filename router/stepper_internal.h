/* stepper_internal: what the stepper's tests and fuzz target look at.
 *
 * Threads: of the step thread, or of a caller while it is idle.
 */
#ifndef MOE_ROUTER_STEPPER_INTERNAL_H
#define MOE_ROUTER_STEPPER_INTERNAL_H

#include "router/stepper.h"

/* Does a request follow from what is known?  Changes nothing.
 *   MOE_ECLOSED  it counts on another router's KV cache
 *   MOE_EINVAL, MOE_ERANGE  the text names the slot and the field  */
moe_err stepper_check(stepper *s, const Conclave__StepRequest *request, errbuf *eb);

#endif
