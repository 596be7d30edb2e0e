"""A store as others see it: xarray opens a group lazily, with named dimensions, and image ids can be put beside."""

import numpy as np
import pytest
from toy_store import GRAPH, MATRIX, filled, images, values

from pipeline.store import Store

xarray = pytest.importorskip("xarray", reason="opens stores as datasets; pip install '.[test]'")


def opened(store, view, pass_, **options):
    return xarray.open_zarr(store.folder / "targets.zarr", group=f"{view}/{pass_.folder}", consolidated=False, **options)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_xarray_opens_a_pass_lazily_with_named_dimensions(tmp_path, codec):
    store = filled(tmp_path, codec=codec)
    data = opened(store, "v001", GRAPH)
    assert data.graph.dims == ("image", "moment", "region", "other") and data.cells.dims == ("image", "region")
    assert data.graph_crc.dims == ("image",) and data.sizes["image"] == 12
    assert data.graph.chunks is not None and data.graph.chunksizes["image"] == (4, 4, 4)  # nothing was read yet
    meant = values(GRAPH, 1, images(10))
    for name, rows in meant.items():
        assert data[name].dtype == rows.dtype and np.array_equal(data[name][:10].values, rows)
    assert np.isnan(data.graph[10:].values).all()  # padding holds the fill value


def test_rows_are_found_by_image_id_once_the_ids_are_put_beside(tmp_path):
    store = filled(tmp_path)
    store.grow(images(13))  # padding now lies in the middle, and new rows hold fill
    data = opened(store, "v002", MATRIX).assign_coords(image=[row.id for row in Store.open(store.folder).images])
    for row in images(10):
        assert np.array_equal(data.matrix.sel(image=row.id).values, values(MATRIX, 2, [row])["matrix"][0])
    known = data.sel(image=data.image != "")
    assert known.sizes["image"] == 13 and known.image[-1] == images(13)[-1].id


def test_the_whole_store_is_a_tree_of_views_and_passes(tmp_path):
    store = filled(tmp_path)
    tree = xarray.open_datatree(store.folder / "targets.zarr", engine="zarr", consolidated=False)
    assert {node.path.strip("/") for node in tree.leaves} == {"/".join(group) for group in store.stored_groups()}
