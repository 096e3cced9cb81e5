/* Pooling and upsampling, a plane of an image at a time: `lanes` numbers side by side, BLOCK or, in plain arrays, 1. */

/* The largest of the windows of one image plane, and where in the window the first such is; a NaN is the largest. */
INLINE void F(max_pool_plane)(const Py_ssize_t lanes, const Pooling *k, const REAL *x, REAL *y, REAL *position)
{
    for (Py_ssize_t p = 0; p < k->oh; p++)
        for (Py_ssize_t q = 0; q < k->ow; q++) {
            const Py_ssize_t top = p * k->stride_h - k->padding_top, left = q * k->stride_w - k->padding_left;
            REAL value[BLOCK] = {0}, place[BLOCK] = {0};
            int some = 0;
            for (Py_ssize_t u = most(-top, 0); u < k->kernel_h && top + u < k->ih; u++)
                for (Py_ssize_t v = most(-left, 0); v < k->kernel_w && left + v < k->iw; v++) {
                    const REAL *from = x + ((top + u) * k->iw + left + v) * lanes;
                    const REAL here = (REAL)(u * k->kernel_w + v);
                    for (Py_ssize_t l = 0; l < lanes; l++) {
                        const int take = !some | (from[l] > value[l]) | ((from[l] != from[l]) & (value[l] == value[l]));
                        value[l] = take ? from[l] : value[l];
                        place[l] = take ? here : place[l];
                    }
                    some = 1;
                }
            memcpy(y + (p * k->ow + q) * lanes, value, (size_t)lanes * sizeof(REAL));
            if (position) memcpy(position + (p * k->ow + q) * lanes, place, (size_t)lanes * sizeof(REAL));
        }
}

/* dx of one plane: the slope of each window goes to the place its largest number came from. */
INLINE void F(max_unpool_plane)(const Py_ssize_t lanes, const Pooling *k, const REAL *dy, const REAL *position,
                                const REAL *y, int activation, REAL *dx)
{
    const int apart = k->stride_h >= k->kernel_h && k->stride_w >= k->kernel_w;
    const int even = k->stride_h == k->kernel_h && k->stride_w == k->kernel_w && !k->padding_top && !k->padding_left;
    const int covered = even && k->oh * k->kernel_h == k->ih && k->ow * k->kernel_w == k->iw; /* every place once */
    const Py_ssize_t most_places = 64 * BLOCK / lanes;
    REAL slopes[64 * BLOCK];
    if (!covered) memset(dx, 0, (size_t)(k->ih * k->iw * lanes) * sizeof(REAL));
    for (Py_ssize_t p = 0; p < k->oh; p++)
        for (Py_ssize_t begin = 0; begin < k->ow; begin += most_places) {
            const Py_ssize_t count = least(most_places, k->ow - begin), row = (p * k->ow + begin) * lanes;
            const REAL *from = dy + row;
            if (y && activation != LINEAR) {
                F(map_slope)(dy + row, y + row, slopes, count * lanes, activation);
                from = slopes;
            }
            for (Py_ssize_t q = 0; q < count; q++) {
                const Py_ssize_t top = p * k->stride_h - k->padding_top;
                const Py_ssize_t left = (begin + q) * k->stride_w - k->padding_left;
                const Py_ssize_t u_end = least(k->kernel_h, k->ih - top), v_end = least(k->kernel_w, k->iw - left);
                for (Py_ssize_t l = 0; l < lanes; l += lanes == 1 ? 1 : LANES) {
                    const REAL *place = position + row + q * lanes + l, *slope = from + q * lanes + l;
                    const V at = lanes == 1 ? (V){0} : F(load)(place), all = lanes == 1 ? (V){0} : F(load)(slope);
                    for (Py_ssize_t u = most(-top, 0); u < u_end; u++)
                        for (Py_ssize_t v = most(-left, 0); v < v_end; v++) {
                            REAL *to = dx + ((top + u) * k->iw + left + v) * lanes + l;
                            const REAL here = (REAL)(u * k->kernel_w + v);
                            if (lanes == 1) {
                                const REAL one = *place == here ? *slope : 0;
                                *to = apart ? one : *to + one;
                            } else {
                                const V some = F(pick)(at == here, all, (V){0});
                                F(store)(to, apart ? some : F(load)(to) + some);
                            }
                        }
                }
            }
        }
}

INLINE Py_ssize_t F(pool_count)(const Pooling *k, Py_ssize_t top, Py_ssize_t left, int all)
{
    if (all) return k->kernel_h * k->kernel_w;
    return (least(top + k->kernel_h, k->ih) - most(top, 0)) * (least(left + k->kernel_w, k->iw) - most(left, 0));
}

INLINE void F(avg_pool_plane)(const Py_ssize_t lanes, const Pooling *k, int all, const REAL *x, REAL *y)
{
    for (Py_ssize_t p = 0; p < k->oh; p++)
        for (Py_ssize_t q = 0; q < k->ow; q++) {
            const Py_ssize_t top = p * k->stride_h - k->padding_top, left = q * k->stride_w - k->padding_left;
            const REAL count = (REAL)F(pool_count)(k, top, left, all);
            REAL sum[BLOCK] = {0};
            for (Py_ssize_t u = most(-top, 0); u < k->kernel_h && top + u < k->ih; u++)
                for (Py_ssize_t v = most(-left, 0); v < k->kernel_w && left + v < k->iw; v++) {
                    const REAL *from = x + ((top + u) * k->iw + left + v) * lanes;
                    for (Py_ssize_t l = 0; l < lanes; l++) sum[l] += from[l];
                }
            for (Py_ssize_t l = 0; l < lanes; l++) y[(p * k->ow + q) * lanes + l] = sum[l] / count;
        }
}

INLINE void F(avg_unpool_plane)(const Py_ssize_t lanes, const Pooling *k, int all, const REAL *dy, REAL *dx)
{
    memset(dx, 0, (size_t)(k->ih * k->iw * lanes) * sizeof(REAL));
    for (Py_ssize_t p = 0; p < k->oh; p++)
        for (Py_ssize_t q = 0; q < k->ow; q++) {
            const Py_ssize_t top = p * k->stride_h - k->padding_top, left = q * k->stride_w - k->padding_left;
            const REAL count = (REAL)F(pool_count)(k, top, left, all);
            REAL each[BLOCK];
            for (Py_ssize_t l = 0; l < lanes; l++) each[l] = dy[(p * k->ow + q) * lanes + l] / count;
            for (Py_ssize_t u = most(-top, 0); u < k->kernel_h && top + u < k->ih; u++)
                for (Py_ssize_t v = most(-left, 0); v < k->kernel_w && left + v < k->iw; v++) {
                    REAL *to = dx + ((top + u) * k->iw + left + v) * lanes;
                    for (Py_ssize_t l = 0; l < lanes; l++) to[l] += each[l];
                }
        }
}

INLINE void F(upsample_plane)(const Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw,
                              const REAL *x, REAL *y)
{
    for (Py_ssize_t p = 0; p < ih * fh; p++)
        for (Py_ssize_t j = 0; j < iw; j++)
            for (Py_ssize_t b = 0; b < fw; b++)
                for (Py_ssize_t l = 0; l < lanes; l++)
                    y[(p * iw * fw + j * fw + b) * lanes + l] = x[(p / fh * iw + j) * lanes + l];
}

INLINE void F(downsum_plane)(const Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw,
                             const REAL *dy, REAL *dx)
{
    for (Py_ssize_t i = 0; i < ih; i++)
        for (Py_ssize_t j = 0; j < iw; j++) {
            REAL sum[BLOCK] = {0};
            for (Py_ssize_t a = 0; a < fh; a++)
                for (Py_ssize_t b = 0; b < fw; b++)
                    for (Py_ssize_t l = 0; l < lanes; l++)
                        sum[l] += dy[((i * fh + a) * iw * fw + j * fw + b) * lanes + l];
            memcpy(dx + (i * iw + j) * lanes, sum, (size_t)lanes * sizeof(REAL));
        }
}

STATIC void F(max_pool)(Py_ssize_t lanes, const Pooling *k, const REAL *x, REAL *y, REAL *position)
{
    if (lanes == 1)
        F(max_pool_plane)(1, k, x, y, position);
    else
        F(max_pool_plane)(BLOCK, k, x, y, position);
}

STATIC void F(max_unpool)(Py_ssize_t lanes, const Pooling *k, const REAL *dy, const REAL *position, const REAL *y,
                          int activation, REAL *dx)
{
    if (lanes == 1)
        F(max_unpool_plane)(1, k, dy, position, y, activation, dx);
    else
        F(max_unpool_plane)(BLOCK, k, dy, position, y, activation, dx);
}

STATIC void F(avg_pool)(Py_ssize_t lanes, const Pooling *k, int all, const REAL *x, REAL *y)
{
    if (lanes == 1)
        F(avg_pool_plane)(1, k, all, x, y);
    else
        F(avg_pool_plane)(BLOCK, k, all, x, y);
}

STATIC void F(avg_unpool)(Py_ssize_t lanes, const Pooling *k, int all, const REAL *dy, REAL *dx)
{
    if (lanes == 1)
        F(avg_unpool_plane)(1, k, all, dy, dx);
    else
        F(avg_unpool_plane)(BLOCK, k, all, dy, dx);
}

STATIC void F(upsample)(Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw, const REAL *x, REAL *y)
{
    if (lanes == 1)
        F(upsample_plane)(1, ih, iw, fh, fw, x, y);
    else
        F(upsample_plane)(BLOCK, ih, iw, fh, fw, x, y);
}

STATIC void F(downsum)(Py_ssize_t lanes, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t fh, Py_ssize_t fw, const REAL *dy, REAL *dx)
{
    if (lanes == 1)
        F(downsum_plane)(1, ih, iw, fh, fw, dy, dx);
    else
        F(downsum_plane)(BLOCK, ih, iw, fh, fw, dy, dx);
}
