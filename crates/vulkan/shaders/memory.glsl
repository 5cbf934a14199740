// Typed views of device addresses. An address is cast to the view that fits its alignment; indices count elements.

#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference2 : require
#extension GL_EXT_control_flow_attributes : require

layout(buffer_reference, std430, buffer_reference_align = 4) readonly restrict buffer ReadU { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) readonly restrict buffer ReadU2 { uvec2 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly restrict buffer ReadU4 { uvec4 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) readonly restrict buffer ReadF { float at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly restrict buffer ReadF4 { vec4 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer WriteU { uint at[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer WriteU2 { uvec2 at[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer WriteF { float at[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer WriteF4 { vec4 at[]; };
