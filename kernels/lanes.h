/* lanes: the fixed order in which sums along a row are taken.
 *
 * 16 virtual lanes collect the elements (lane = index mod 16, in rising order), then this tree adds
 * the lanes.  Any vector width that divides 16 can follow it without changing a bit.
 */
#ifndef MOE_KERNELS_LANES_H
#define MOE_KERNELS_LANES_H

#define LANES 16

/* Adds lanes 8 apart, then 4, 2, 1.  lane is overwritten. */
static inline float
lanes_sum(float lane[LANES])
{
    for (int apart = LANES / 2; apart > 0; apart /= 2) {
        for (int j = 0; j < apart; j++)
            lane[j] += lane[j + apart];
    }
    return lane[0];
}

#endif
