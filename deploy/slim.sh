#!/bin/sh
# Remove from the Python environment $1 what serving does not use: the tests and headers of packages, pip, and the parts
# of OpenVINO and ONNX Runtime for other devices, other formats and the conversion of models. `extproc serve` needs
# OpenVINO's CPU plugin and the IR frontend.
set -eu
site=$(echo "$1"/lib/python3*/site-packages)
find "$site" -depth -type d \( -name tests -o -name include -o -name cmake \) -exec rm -rf {} +
find "$site" -type f \( -name '*.pyi' -o -name '*.pxd' -o -name '*.h' -o -name '*.hpp' \) -delete
rm -rf "$site"/pip "$site"/pip-* "$site"/setuptools "$site"/setuptools-* "$site"/pkg_resources "$site"/_distutils_hack \
  "$site"/distutils-precedence.pth "$1"/bin/pip* "$site"/faiss/contrib
cd "$site"/openvino
for part in auto auto_batch hetero intel_gpu intel_npu; do rm -f libs/libopenvino_${part}_plugin.so; done
for part in gguf jax onnx paddle pytorch tensorflow tensorflow_lite; do rm -f libs/libopenvino_${part}_frontend.so*; done
rm -f libs/libopenvino_c.so* libs/cache.json
# ONNX Runtime's Python module contains its library. It needs neither the separate one nor the tools that convert models.
if [ -d "$site"/onnxruntime ]; then
  cd "$site"/onnxruntime
  rm -rf backend datasets quantization tools transformers capi/libonnxruntime.so*
fi
